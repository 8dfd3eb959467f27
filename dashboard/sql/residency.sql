-- How often was each expert in memory when a pass wanted it, over the whole run?
select component, layer, expert, e.hits / nullif(e.wanted, 0)::double as residency
from v_expert left join (
    select component, layer, expert, sum(hits) as hits, sum(hits + misses) as wanted
    from v_expert_window
    where run_id = $run_id
    group by component, layer, expert
) e using (component, layer, expert)
where v_expert.run_id = $run_id
order by component, layer, expert
