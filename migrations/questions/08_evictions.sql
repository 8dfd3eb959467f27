-- Did experts of high trust stay, and why did those leave that left?
-- Experts in four groups by trust within their layer (4 = most trusted), and the logged evictions of each.
WITH grouped AS (
  SELECT component, layer, expert, trust, uses,
    NTILE(4) OVER (PARTITION BY component, layer ORDER BY trust, expert) AS quarter
  FROM v_expert_trust
  WHERE run_id = $run_id AND context = '*'
), evicted AS (
  SELECT component, layer, expert, COUNT(*) AS evictions, SUM(idle_steps) AS idle_steps,
    SUM(policy_score) AS policy_score, SUM(CASE WHEN next_use_step >= 0 THEN 1 ELSE 0 END) AS back
  FROM v_residency_event
  WHERE run_id = $run_id AND kind = 'evict'
  GROUP BY component, layer, expert
)
SELECT quarter AS trust_quarter, COUNT(*) AS experts, ROUND(AVG(trust), 4) AS trust, SUM(uses) AS uses,
  SUM(COALESCE(evictions, 0)) AS evictions,
  ROUND(SUM(COALESCE(evictions, 0)) * 1000.0 / NULLIF(SUM(uses), 0), 3) AS evictions_per_1000_uses,
  ROUND(SUM(idle_steps) * 1.0 / NULLIF(SUM(evictions), 0), 2) AS idle_passes,
  ROUND(SUM(policy_score) / NULLIF(SUM(evictions), 0), 3) AS policy_score,
  ROUND(SUM(back) * 1.0 / NULLIF(SUM(evictions), 0), 4) AS came_back
FROM grouped LEFT JOIN evicted USING (component, layer, expert)
GROUP BY quarter
ORDER BY quarter DESC
