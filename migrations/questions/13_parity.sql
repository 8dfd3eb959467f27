-- Was the observed output equal to that of the unobserved and of the stock model, and made with what?
-- parity: equal, different or unchecked. verdict lists each comparison with the digests of checkpoint and outputs.
SELECT name, status, parity, checkpoint_digest, model_family, policy, budget_experts, capture, attempts, versions, verdict
FROM v_run WHERE run_id = $run_id
