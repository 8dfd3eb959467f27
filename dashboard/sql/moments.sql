-- Which moments were the most salient, what drove them, and was the next token harder to predict after them?
-- driven_by: the score that is highest above its mean over the run. nll_before, nll_after: of the windows beside it.
with means as (
    select avg(surprise) as surprise, avg(novelty) as novelty, avg(arousal) as arousal, avg(reward) as reward,
        avg(conflict) as conflict
    from v_salience
    where run_id = $run_id and component = $component
), scored as (
    select
        s.*,
        lag(case when predicted > 0 then nll end) over text_ as nll_before,
        lead(case when predicted > 0 then nll end) over text_ as nll_after,
        list_sort(
            [
                (s.surprise - m.surprise, 'surprise'), (s.novelty - m.novelty, 'novelty'),
                (s.arousal - m.arousal, 'arousal'), (s.reward - m.reward, 'reward'),
                (s.conflict - m.conflict, 'conflict')
            ],
            'desc'
        )[1][2] as driven_by
    from v_salience s, means m
    where s.run_id = $run_id and s.component = $component
    window text_ as (partition by ordinal order by position)
)
select
    q.text_id, q.context, ordinal, position, s.tokens, salience, driven_by, surprise, novelty, arousal, reward, conflict,
    nll_before, case when s.predicted > 0 then s.nll end as nll, nll_after, s.text
from scored s left join v_sequence q using (run_id, ordinal)
where ($context = '*' or q.context = $context) and ($driven_by = '' or driven_by = $driven_by)
order by salience desc, ordinal, position
limit $most
