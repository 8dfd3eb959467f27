-- How well did each statistic of a run foretell what removing an expert costs?
select scope, statistic, rho, low, high, n, texts, definition_version
from v_validation
where run_id = $run_id
order by scope not in ('global', 'within layer'), scope, rho desc, statistic
