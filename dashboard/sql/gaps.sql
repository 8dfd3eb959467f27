-- What was not recorded, and when?
select reason, first_step, last_step, count
from v_gap
where run_id = $run_id
order by count desc, reason, first_step
