-- How much raw routing was kept, and of which passes?
select
    count(*) as files, sum(rows)::bigint as rows, sum(bytes)::double as bytes,
    min(first_step) as first_step, max(last_step) as last_step
from v_trace
where run_id = $run_id
having count(*) > 0
