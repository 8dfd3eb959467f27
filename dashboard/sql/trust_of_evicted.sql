-- Did experts of high trust stay?
-- Experts in four groups by trust within their layer, 4 is the most trusted, and the logged evictions of each group.
with grouped as (
    select component, layer, expert, trust, uses,
        ntile(4) over (partition by component, layer order by trust, expert) as quarter
    from v_expert_trust
    where run_id = $run_id and context = '*'
), evicted as (
    select component, layer, expert, count(*) as evictions, count_if(next_use_step >= 0) as back
    from v_residency_event
    where run_id = $run_id and kind = 'evict'
    group by component, layer, expert
)
select
    quarter, count(*) as experts, avg(trust) as trust, sum(uses)::bigint as uses,
    coalesce(sum(evictions), 0)::bigint as evictions,
    1000.0 * coalesce(sum(evictions), 0) / nullif(sum(uses), 0) as evictions_per_1000_uses,
    sum(back) / nullif(sum(evictions), 0)::double as came_back
from grouped left join evicted using (component, layer, expert)
group by quarter
order by quarter desc
