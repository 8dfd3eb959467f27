-- How much is each expert trusted and used in one context, and how often was it in memory when it was wanted?
-- load_log2 is the load against the fair share 1 / (experts in the layer): 0 fair, 1 twice as much, null if unused.
-- residency is known for all contexts together only: the share of the passes that wanted the expert and found it.
with residency as (
    select component, layer, expert, sum(hits) / nullif(sum(hits + misses), 0)::double as residency
    from v_expert_window
    where run_id = $run_id
    group by component, layer, expert
)
select
    component, layer, expert, uses, uses = 0 as dead,
    trust, trust_low, trust_high, convergence, load,
    case when uses > 0 and load > 0
        then log2(load * count(*) over (partition by component, layer))
    end as load_log2,
    residency
from v_expert_trust left join residency using (component, layer, expert)
where run_id = $run_id and context = $context
order by component, layer, expert
