-- How did a run go from score window to score window?
select
    window_index, phase, first_step, last_step, last_token + 1 as token, tokens,
    case when predicted > 0 then nll end as nll,
    hits / nullif(hits + misses, 0)::double as hit_rate,
    loads, evictions, bytes_read,
    1000.0 * evictions / nullif(tokens, 0) as evictions_per_1000
from v_window
where run_id = $run_id
order by window_index
