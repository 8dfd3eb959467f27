-- In which score windows was one expert's own salience greatest?
select
    window_index, w.last_token + 1 as token, e.uses,
    (e.surprise + e.novelty + e.arousal + e.reward + e.conflict) / 5 as salience,
    e.surprise, e.novelty, e.arousal, e.reward, e.conflict
from v_expert_window e join v_window w using (run_id, window_index)
where run_id = $run_id and component = $component and layer = $layer and expert = $expert and e.uses > 0
order by salience desc, window_index
limit 12
