-- Is the ranking settled, and after how many tokens?
-- rho: Spearman's rank correlation of a layer's trust at the end of a window with its trust now. narrow: share of its
-- experts whose 90% interval is narrower than 0.2 then. Twelve windows, evenly spread.
WITH spread AS (
  SELECT window_index, last_token,
    NTILE(12) OVER (ORDER BY window_index) AS part
  FROM v_window
  WHERE run_id = $run_id AND window_index IN (SELECT window_index FROM v_expert_window WHERE run_id = $run_id)
), chosen AS (
  SELECT MAX(window_index) AS window_index, MAX(last_token) AS last_token FROM spread GROUP BY part
), now AS (
  SELECT component, layer, expert,
    RANK() OVER (PARTITION BY component, layer ORDER BY trust)
      + (COUNT(*) OVER (PARTITION BY component, layer, trust) - 1) / 2.0 AS place
  FROM v_expert_trust
  WHERE run_id = $run_id AND context = '*'
), then_ AS (
  SELECT c.last_token, w.component, w.layer, w.expert, w.trust_high - w.trust_low AS width,
    RANK() OVER (PARTITION BY c.window_index, w.component, w.layer ORDER BY w.trust)
      + (COUNT(*) OVER (PARTITION BY c.window_index, w.component, w.layer, w.trust) - 1) / 2.0 AS place
  FROM chosen c JOIN v_expert_window w ON w.run_id = $run_id AND w.window_index = c.window_index
)
SELECT then_.component, then_.layer, then_.last_token + 1 AS tokens,
  ROUND((COUNT(*) * SUM(then_.place * now.place) - SUM(then_.place) * SUM(now.place))
    / NULLIF(SQRT(COUNT(*) * SUM(then_.place * then_.place) - SUM(then_.place) * SUM(then_.place))
      * SQRT(COUNT(*) * SUM(now.place * now.place) - SUM(now.place) * SUM(now.place)), 0), 4) AS rho,
  ROUND(AVG(CASE WHEN width < 0.2 THEN 1.0 ELSE 0.0 END), 4) AS narrow
FROM then_ JOIN now USING (component, layer, expert)
GROUP BY then_.component, then_.layer, then_.last_token
ORDER BY then_.component, then_.layer, tokens
