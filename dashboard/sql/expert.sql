-- What is known of one expert, in each context of the run?
select
    context, trust, trust_low, trust_high, convergence, stability, efficiency,
    uses, blocks, load, weight_mean, ean, reap, impact_mean
from v_expert_trust
where run_id = $run_id and component = $component and layer = $layer and expert = $expert
order by context != '*', context
