-- During which passes was one expert in memory, as far as its loads and evictions were logged?
-- until is the pass of its eviction, or of the last logged event if it stayed.
with own as (
    select event_index, step, kind, reason,
        lead(step) over (order by event_index) as next_step,
        (select max(step) from v_residency_event where run_id = $run_id) as last_step
    from v_residency_event
    where run_id = $run_id and component = $component and layer = $layer and expert = $expert
)
select step as since, coalesce(next_step, last_step) as until, reason
from own
where kind = 'load'
order by event_index
limit $most
