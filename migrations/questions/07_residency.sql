-- How well did the memory serve: hit rate, churn, reloads, bytes and time that evictions cost?
-- reloaded: of the logged evictions, the share whose expert was loaded again; reloaded_soon: within 16 passes. Their cost
-- is what loading again read and how long the model stood still. What another policy would have done is for replay.
WITH totals AS (
  SELECT phase, SUM(tokens) AS tokens, SUM(hits) AS hits, SUM(misses) AS misses, SUM(evictions) AS evictions,
    SUM(bytes_read) AS bytes_read, SUM(wall_ns) AS wall_ns
  FROM v_window WHERE run_id = $run_id GROUP BY phase
), evicted AS (
  SELECT COUNT(*) AS logged, AVG(CASE WHEN next_use_step >= 0 THEN 1.0 ELSE 0.0 END) AS reloaded,
    AVG(CASE WHEN next_use_step >= 0 AND next_use_step - step <= 16 THEN 1.0 ELSE 0.0 END) AS reloaded_soon,
    SUM(CASE WHEN next_use_step >= 0 THEN bytes ELSE 0 END) AS bytes_again
  FROM v_residency_event WHERE run_id = $run_id AND kind = 'evict'
), loaded AS (
  SELECT AVG(waited_ns) AS waited_ns FROM v_residency_event WHERE run_id = $run_id AND kind = 'load'
)
SELECT phase, tokens, ROUND(hits * 1.0 / NULLIF(hits + misses, 0), 4) AS hit_rate,
  ROUND(evictions * 1000.0 / tokens, 1) AS evictions_per_1000_tokens, bytes_read,
  ROUND(tokens * 1e9 / NULLIF(wall_ns, 0), 1) AS tokens_per_s, logged AS evictions_logged,
  ROUND(reloaded, 4) AS reloaded, ROUND(reloaded_soon, 4) AS reloaded_soon, bytes_again,
  ROUND(waited_ns / 1e6, 4) AS ms_a_load
FROM totals CROSS JOIN evicted CROSS JOIN loaded
ORDER BY phase DESC
