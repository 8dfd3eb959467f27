-- How far can each expert be relied on, with which evidence, and does its trust rise or fall?
-- change: since the score window at which half of the run's windows were done; only for all contexts together.
WITH half AS (
  SELECT MIN(window_index) AS window_index
  FROM v_window
  WHERE run_id = $run_id AND last_token * 2 >= (SELECT MAX(last_token) FROM v_window WHERE run_id = $run_id)
)
SELECT t.component, t.layer, t.expert, t.context, ROUND(t.trust, 4) AS trust, ROUND(t.trust_low, 4) AS trust_low,
  ROUND(t.trust_high, 4) AS trust_high, t.uses, t.blocks, ROUND(t.trust - w.trust, 4) AS change
FROM v_expert_trust t
LEFT JOIN v_expert_window w
  ON t.context = '*' AND w.run_id = t.run_id AND w.component = t.component AND w.layer = t.layer
  AND w.expert = t.expert AND w.window_index = (SELECT window_index FROM half)
WHERE t.run_id = $run_id
ORDER BY t.trust DESC, t.component, t.layer, t.expert, t.context
