-- Which policies miss the fewest accesses over all budgets, and which is the run's own?
select policy, bool_or(is_own = 1) as is_own, avg(miss_ratio) as miss_ratio
from v_what_if
where run_id = $run_id and phase = $phase and policy != 'belady'
group by policy
order by miss_ratio, policy
