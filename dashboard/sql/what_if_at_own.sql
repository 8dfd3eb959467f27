-- What would each policy have cost with the run's own budget?
select
    policy, is_own = 1 as is_own, budget_experts, miss_ratio, miss_ratio_low, miss_ratio_high,
    bytes_read / 1048576.0 as mib, read_ms / 1000.0 as read_s, evictions, reloads_soon
from v_what_if
where run_id = $run_id and phase = $phase
    and budget_experts = (
        select budget_experts from v_what_if where run_id = $run_id and phase = $phase and is_own = 1
    )
order by miss_ratio, policy
