-- How many loads and evictions were there, pass by pass, in at most 400 stretches?
with span as (
    select min(step) as first_step, greatest(1, ceil((max(step) - min(step) + 1) / 400.0))::bigint as width
    from v_residency_event
    where run_id = $run_id
)
select
    first_step + width * ((step - first_step) // width) as step, width, kind, count(*) as events,
    sum(bytes)::double as bytes, sum(waited_ns) / 1e6 as waited_ms
from v_residency_event, span
where run_id = $run_id
group by all
order by step, kind
