-- On what share of the events do the statistics rest, and what was lost, when and why?
-- The first row is the run as a whole; the others are its gaps.
WITH rows_ AS (
  SELECT 0 AS place, 'all' AS reason, 0 AS first_step, passes - 1 AS last_step, events_dropped AS events,
    ROUND(events_seen * 1.0 / NULLIF(events_seen + events_dropped, 0), 6) AS seen_share
  FROM v_run WHERE run_id = $run_id
  UNION ALL
  SELECT 1, reason, first_step, last_step, count, NULL
  FROM v_gap WHERE run_id = $run_id
)
SELECT reason, first_step, last_step, events, seen_share
FROM rows_
ORDER BY place, reason, first_step
