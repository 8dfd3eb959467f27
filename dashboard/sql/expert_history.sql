-- How did one expert fare from score window to score window?
-- token: of the run, at the window's end. Its shares in the scores are unknown where it was not picked.
select
    window_index, w.phase, w.last_token + 1 as token, w.first_token, w.first_step, w.last_step,
    e.trust, e.trust_low, e.trust_high, e.convergence, e.stability, e.efficiency,
    e.uses, e.load, e.impact_mean, e.hits, e.misses, e.evictions,
    e.hits / nullif(e.hits + e.misses, 0)::double as residency,
    case when e.uses > 0 then e.surprise end as surprise, case when e.uses > 0 then e.novelty end as novelty,
    case when e.uses > 0 then e.arousal end as arousal, case when e.uses > 0 then e.reward end as reward,
    case when e.uses > 0 then e.conflict end as conflict,
    case when e.uses > 0 then greatest(e.surprise, e.novelty, e.arousal, e.reward, e.conflict) end as peak
from v_expert_window e join v_window w using (run_id, window_index)
where run_id = $run_id and component = $component and layer = $layer and expert = $expert
order by window_index
