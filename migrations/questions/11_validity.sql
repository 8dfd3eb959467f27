-- Is trust more than frequency and weight: what foretells best what removing an expert costs?
-- Spearman's rho with its 90% interval, by scope; ahead: of trust in the same scope, 1 if its interval lies above.
SELECT v.scope, v.statistic, ROUND(v.rho, 4) AS rho, ROUND(v.low, 4) AS low, ROUND(v.high, 4) AS high, v.n, v.texts,
  CASE WHEN v.low > t.high THEN 1 WHEN v.high < t.low THEN -1 ELSE 0 END AS ahead_of_trust
FROM v_validation v
LEFT JOIN v_validation t ON t.run_id = v.run_id AND t.scope = v.scope AND t.statistic = 'trust'
WHERE v.run_id = $run_id
ORDER BY v.scope, v.rho DESC, v.statistic
