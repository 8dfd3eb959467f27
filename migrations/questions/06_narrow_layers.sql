-- Which layers are narrow: how many experts take 50%, 90% and 99% of their picks?
-- That many experts of a layer, always in memory, would serve that share of its picks; bytes_90 is what the 90% take. For
-- miss ratios of real policies at real budgets replay a trace.
WITH ranked AS (
  SELECT t.component, t.layer, t.expert, t.load, e.bytes,
    SUM(t.load) OVER (
      PARTITION BY t.component, t.layer ORDER BY t.load DESC, t.expert
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) - t.load AS before
  FROM v_expert_trust t
  JOIN v_expert e ON e.run_id = t.run_id AND e.component = t.component AND e.layer = t.layer AND e.expert = t.expert
  WHERE t.run_id = $run_id AND t.context = '*'
)
SELECT component, layer, COUNT(*) AS experts,
  SUM(CASE WHEN before < 0.5 - 1e-9 AND load > 0 THEN 1 ELSE 0 END) AS experts_50,
  SUM(CASE WHEN before < 0.9 - 1e-9 AND load > 0 THEN 1 ELSE 0 END) AS experts_90,
  SUM(CASE WHEN before < 0.99 - 1e-9 AND load > 0 THEN 1 ELSE 0 END) AS experts_99,
  SUM(CASE WHEN before < 0.9 - 1e-9 AND load > 0 THEN bytes ELSE 0 END) AS bytes_90
FROM ranked
GROUP BY component, layer
ORDER BY experts_90, component, layer
