-- Which runs are in the record, newest first, and what does each one's header say?
-- A share of nothing is unknown, not zero.
select
    run_id, name, status, error, started_at, heartbeat_at, finished_at, sequences, sequences_planned, tokens, parity,
    capture, policy, budget_experts, model_family, checkpoint, checkpoint_digest, config, versions, drops,
    bytes_read, evictions, events_seen, events_dropped,
    queue_events, queue_most, queue_capacity, waited_ns / 1e9 as waited_s,
    (select count(*) from v_expert where v_expert.run_id = v_run.run_id) as experts,
    case when tokens > 0 then nll end as nll,
    case when hits + misses > 0 then hits / (hits + misses)::double end as hit_rate,
    case when events_seen + events_dropped > 0
        then events_seen / (events_seen + events_dropped)::double
    end as recorded_frac
from v_run
order by run_id desc
