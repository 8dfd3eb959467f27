-- How well did each statistic of a run foretell what removing an expert costs?
-- A row whose name is a difference says by how much one statistic's rho is above the other's.
select scope, statistic, rho, low, high, n, texts, definition_version, contains(statistic, ' - ') as is_difference
from v_validation
where run_id = $run_id and statistic != '90% intervals that hold'
order by
    list_position(['per context', 'within layer', 'global'], scope) desc nulls last, scope, is_difference,
    rho desc, statistic
