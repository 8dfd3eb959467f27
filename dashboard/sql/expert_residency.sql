-- During which passes was one expert in memory, as far as its loads and evictions were logged?
-- until is the pass of its eviction, or of the last logged event if it stayed. Passes are put on the axis of tokens by
-- the score window that they lie in.
with own as (
    select event_index, step, kind, reason,
        lead(step) over (order by event_index) as next_step,
        (select max(step) from v_residency_event where run_id = $run_id) as last_step
    from v_residency_event
    where run_id = $run_id and component = $component and layer = $layer and expert = $expert
), stays as (
    select event_index, step as since, coalesce(next_step, last_step) as until, reason
    from own
    where kind = 'load'
), windows as (
    select first_step, first_token, (last_token - first_token + 1) / (last_step - first_step + 1)::double as tokens
    from v_window
    where run_id = $run_id
)
select
    since, until, reason,
    a.first_token + (since - a.first_step) * a.tokens as since_token,
    b.first_token + (until + 1 - b.first_step) * b.tokens as until_token
from stays
asof join windows a on since >= a.first_step
asof join windows b on until >= b.first_step
order by event_index
limit $most
