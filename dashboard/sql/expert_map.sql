-- How much is each expert trusted and used in one context?
-- load_log2 is the load against the fair share 1 / (experts in the layer): 0 fair, 1 twice as much, null if unused.
select
    component, layer, expert, uses, uses = 0 as dead,
    trust, trust_low, trust_high, convergence, load,
    case when uses > 0 and load > 0
        then log2(load * count(*) over (partition by component, layer))
    end as load_log2
from v_expert_trust
where run_id = $run_id and context = $context
order by component, layer, expert
