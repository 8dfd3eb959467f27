-- What differs between two runs: whose trust changed, and by more than the intervals allow?
-- change: in the run $run_id, against $other_id. apart: 1 if the 90% intervals do not overlap.
SELECT a.component, a.layer, a.expert, a.context, ROUND(b.trust, 4) AS other, ROUND(a.trust, 4) AS this,
  ROUND(a.trust - b.trust, 4) AS change, ROUND(a.load - b.load, 5) AS load_change,
  CASE WHEN a.trust_low > b.trust_high OR a.trust_high < b.trust_low THEN 1 ELSE 0 END AS apart
FROM v_expert_trust a
JOIN v_expert_trust b ON b.component = a.component AND b.layer = a.layer AND b.expert = a.expert
  AND b.context = a.context
WHERE a.run_id = $run_id AND b.run_id = $other_id
ORDER BY ABS(a.trust - b.trust) DESC, a.component, a.layer, a.expert, a.context
LIMIT 100
