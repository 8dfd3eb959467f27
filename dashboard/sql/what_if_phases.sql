-- For which phases is it known what other policies and budgets would have cost?
select distinct phase
from v_what_if
where run_id = $run_id
order by list_position(['all', 'prefill', 'decode'], phase)
