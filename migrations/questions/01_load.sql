-- Which experts are used per layer, how evenly, and is routing collapsing?
-- entropy_share: 1 = all experts alike, 0 = one does it all. The last two columns compare the first and last score
-- window that has picks: a fall means collapse.
WITH ends AS (
  SELECT component, layer, MIN(window_index) AS first_window, MAX(window_index) AS last_window
  FROM v_expert_window
  WHERE run_id = $run_id AND load > 0
  GROUP BY component, layer
), windows AS (
  SELECT component, layer,
    -SUM(CASE WHEN window_index = first_window THEN load * LN(load) ELSE 0 END) AS entropy_first,
    -SUM(CASE WHEN window_index = last_window THEN load * LN(load) ELSE 0 END) AS entropy_last
  FROM ends JOIN v_expert_window USING (component, layer)
  WHERE run_id = $run_id AND load > 0
    AND window_index IN (SELECT first_window FROM ends UNION SELECT last_window FROM ends)
  GROUP BY component, layer
), layers AS (
  SELECT component, layer, COUNT(*) AS experts, SUM(CASE WHEN t.uses = 0 THEN 1 ELSE 0 END) AS dead,
    MAX(load) * COUNT(*) AS busiest,
    -SUM(CASE WHEN load > 0 THEN load * LN(load) ELSE 0 END) / LN(COUNT(*)) AS entropy_share
  FROM v_expert_trust t
  WHERE run_id = $run_id AND context = '*'
  GROUP BY component, layer
)
SELECT component, layer, experts, experts - dead AS used, dead,
  ROUND(busiest, 3) AS busiest_of_fair_share, ROUND(entropy_share, 4) AS entropy_share,
  ROUND(entropy_first / LN(experts), 4) AS first_window, ROUND(entropy_last / LN(experts), 4) AS last_window
FROM layers LEFT JOIN windows USING (component, layer)
ORDER BY component, layer
