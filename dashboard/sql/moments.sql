-- Which moments were the most salient, what drove them, and was the next token harder to predict after them?
-- driven_by: the score that is highest above its mean over the run. nll_before, nll_after: of the windows beside it,
-- which only the texts of the chosen ones are sorted for.
with means as (
    select avg(surprise) as surprise, avg(novelty) as novelty, avg(arousal) as arousal, avg(reward) as reward,
        avg(conflict) as conflict
    from v_salience
    where run_id = $run_id and component = $component
), above as (
    select
        s.run_id, s.ordinal, s.position, s.salience, s.surprise - m.surprise as a, s.novelty - m.novelty as b,
        s.arousal - m.arousal as c, s.reward - m.reward as d, s.conflict - m.conflict as e
    from v_salience s, means m
    where s.run_id = $run_id and s.component = $component
), chosen as (
    select
        ordinal, position, q.text_id, q.context,
        case greatest(a, b, c, d, e)
            when a then 'surprise' when b then 'novelty' when c then 'arousal' when d then 'reward' else 'conflict'
        end as driven_by
    from above left join v_sequence q using (run_id, ordinal)
    where ($context = '*' or q.context = $context) and ($driven_by = '' or driven_by = $driven_by)
    order by salience desc, ordinal, position
    limit $most
), near as (
    select
        *,
        lag(case when predicted > 0 then nll end) over text_ as nll_before,
        lead(case when predicted > 0 then nll end) over text_ as nll_after
    from v_salience
    where run_id = $run_id and component = $component and ordinal in (select ordinal from chosen)
    window text_ as (partition by ordinal order by position)
)
select
    text_id, context, ordinal, position, tokens, salience, driven_by, surprise, novelty, arousal, reward, conflict,
    nll_before, case when predicted > 0 then nll end as nll, nll_after, text
from chosen join near using (ordinal, position)
order by salience desc, ordinal, position
