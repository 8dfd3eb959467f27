-- What would other policies and budgets have cost on the run's trace, in the passes of one phase?
select
    policy, budget_experts, is_own = 1 as is_own, miss_ratio, miss_ratio_low, miss_ratio_high,
    bytes_read / 1048576.0 as mib, read_ms / 1000.0 as read_s
from v_what_if
where run_id = $run_id and phase = $phase
order by policy, budget_experts
