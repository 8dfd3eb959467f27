-- How fast was the run, score window by score window?
select
    last_token + 1 as token, phase, tokens, wall_ns / 1e9 as seconds,
    tokens / nullif(wall_ns, 0) * 1e9 as tokens_per_s
from v_window
where run_id = $run_id
order by window_index
