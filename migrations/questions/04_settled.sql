-- Is the ranking settled, and after how many tokens?
-- rho: Spearman's rank correlation of a layer's trust at the end of a window with its trust now. narrow: share of its
-- experts whose 90% interval is narrower than 0.2 then. Twelve windows, evenly spread.
WITH spread AS (
  SELECT window_index, last_token + 1 AS tokens,
    NTILE(12) OVER (ORDER BY window_index) AS part
  FROM v_window
  WHERE run_id = $run_id
    AND window_index >= (SELECT MIN(window_index) FROM v_expert_window WHERE run_id = $run_id)  -- if detail was dropped
), chosen AS (
  SELECT MAX(window_index) AS window_index, MAX(tokens) AS tokens FROM spread GROUP BY part
), trusted AS (
  SELECT c.tokens, w.component, w.layer, w.expert, w.trust, w.trust_high - w.trust_low AS width
  FROM chosen c JOIN v_expert_window w ON w.run_id = $run_id AND w.window_index = c.window_index
  UNION ALL
  SELECT -1 AS tokens, component, layer, expert, trust, 0.0 AS width  -- now
  FROM v_expert_trust
  WHERE run_id = $run_id AND context = '*'
), placed AS (
  SELECT tokens, component, layer, expert, width,
    RANK() OVER (PARTITION BY tokens, component, layer ORDER BY trust)
      + (COUNT(*) OVER (PARTITION BY tokens, component, layer, trust) - 1) / 2.0 AS place
  FROM trusted
), paired AS (
  SELECT tokens, component, layer, width, place,
    MAX(CASE WHEN tokens < 0 THEN place END) OVER (PARTITION BY component, layer, expert) AS now
  FROM placed
)
SELECT component, layer, tokens,
  ROUND((COUNT(*) * SUM(place * now) - SUM(place) * SUM(now))
    / NULLIF(SQRT(COUNT(*) * SUM(place * place) - SUM(place) * SUM(place))
      * SQRT(COUNT(*) * SUM(now * now) - SUM(now) * SUM(now)), 0), 4) AS rho,
  ROUND(AVG(CASE WHEN width < 0.2 THEN 1.0 ELSE 0.0 END), 4) AS narrow
FROM paired
WHERE tokens >= 0 AND now IS NOT NULL
GROUP BY component, layer, tokens
ORDER BY component, layer, tokens
