-- How much was each expert trusted at the end of one score window, and used in it?
select
    component, layer, expert, uses, uses = 0 as dead,
    trust, trust_low, trust_high, convergence, load,
    case when uses > 0 and load > 0
        then log2(load * count(*) over (partition by component, layer))
    end as load_log2,
    hits / nullif(hits + misses, 0)::double as residency
from v_expert_window
where run_id = $run_id and window_index = $window_index
order by component, layer, expert
