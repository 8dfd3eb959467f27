-- Which share of the 90% intervals of trust held what other texts said, in each context?
select scope as context, rho as share, n as experts, texts
from v_validation
where run_id = $run_id and statistic = '90% intervals that hold'
order by context != '*', context
