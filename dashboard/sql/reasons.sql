-- Why did experts come and go, and what did it cost?
select
    kind, reason, count(*) as events, sum(bytes) / 1048576.0 as mib,
    case when kind = 'load' then sum(read_ns) / 1e9 end as read_s,
    case when kind = 'load' then sum(waited_ns) / 1e9 end as waited_s,
    avg(case when kind = 'evict' then idle_steps end) as idle_passes,
    avg(case when kind = 'evict' then policy_score end) as policy_score
from v_residency_event
where run_id = $run_id
group by kind, reason
order by kind desc, events desc, reason
