-- How did the hit rate of each run go, in at most 60 stretches?
with parts as (
    select run_id, ntile(60) over (partition by run_id order by window_index) as part, hits, misses
    from v_window
), rates as (
    select run_id, part, sum(hits) / nullif(sum(hits + misses), 0)::double as hit_rate
    from parts
    group by run_id, part
)
select run_id, list(hit_rate order by part) as hit_rates
from rates
where hit_rate is not null
group by run_id
