-- Which experts are picked together, more often than chance; does one foretell who is picked in the next layer?
-- lift 1 is chance. where_: 'same layer', or 'next layer' (what a prefetch could use): follows is then the share of the
-- first expert's picks that the second one follows.
SELECT c.component, CASE WHEN c.layer = c.other_layer THEN 'same layer' ELSE 'next layer' END AS where_,
  c.layer, c.expert, c.other_layer, c.other_expert, c.count, ROUND(c.lift, 3) AS lift,
  ROUND(c.count * 1.0 / NULLIF(t.uses, 0), 4) AS follows
FROM v_coactivation c
JOIN v_expert_trust t ON t.run_id = c.run_id AND t.component = c.component AND t.layer = c.layer
  AND t.expert = c.expert AND t.context = '*'
WHERE c.run_id = $run_id AND c.count >= 20
ORDER BY c.lift DESC, c.component, c.layer, c.expert, c.other_layer, c.other_expert
LIMIT 100
