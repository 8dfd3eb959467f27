-- Which experts are specialists, which generalists, against chance?
-- share: of an expert's picks, in its main context; chance: of all picks of its layer, in that context. A ratio of 1 is
-- what an expert without preference has. Experts with less than 100 picks are left out.
WITH picks AS (
  SELECT component, layer, expert, context, uses,
    SUM(uses) OVER (PARTITION BY component, layer, expert) AS of_expert,
    SUM(uses) OVER (PARTITION BY component, layer, context) AS of_context,
    SUM(uses) OVER (PARTITION BY component, layer) AS of_layer,
    ROW_NUMBER() OVER (PARTITION BY component, layer, expert ORDER BY uses DESC, context) AS place
  FROM v_expert_trust
  WHERE run_id = $run_id AND context <> '*'
)
SELECT component, layer, expert, context AS main_context, of_expert AS uses,
  ROUND(uses * 1.0 / of_expert, 4) AS share, ROUND(of_context * 1.0 / of_layer, 4) AS chance,
  ROUND((uses * 1.0 / of_expert) / (of_context * 1.0 / of_layer), 3) AS ratio
FROM picks
WHERE place = 1 AND of_expert >= 100
ORDER BY ratio DESC, component, layer, expert
