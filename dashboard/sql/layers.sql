-- How evenly does each layer use its experts, and how many does it never use?
-- entropy_share: entropy of the load over its greatest value, the logarithm of the number of experts; 1 = all alike.
select
    component, layer, count(*) as experts, count_if(uses = 0) as dead,
    case when sum(uses) > 0
        then coalesce(-sum(case when load > 0 then load * ln(load) end) / nullif(ln(count(*)), 0), 0)
    end as entropy_share
from v_expert_trust
where run_id = $run_id and context = $context
group by component, layer
order by component, layer
