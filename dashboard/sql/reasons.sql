-- Why did experts come and go, and what did it cost?
select
    kind, reason, count(*) as events, sum(bytes)::double as bytes,
    sum(read_ns) / 1e6 as read_ms, sum(waited_ns) / 1e6 as waited_ms,
    avg(case when kind = 'evict' then idle_steps end) as idle_passes,
    avg(case when kind = 'evict' then policy_score end) as policy_score
from v_residency_event
where run_id = $run_id
group by kind, reason
order by kind desc, events desc, reason
