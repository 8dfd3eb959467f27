-- For which contexts does a run hold trust?
-- '*', all contexts together, comes first.
select distinct context
from v_expert_trust
where run_id = $run_id
order by context != '*', context
