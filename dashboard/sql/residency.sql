-- How often was each expert in memory when a pass wanted it, over the whole run?
select component, layer, expert, hits / nullif(hits + misses, 0)::double as residency
from v_expert
where run_id = $run_id
order by component, layer, expert
