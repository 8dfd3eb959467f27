-- Which moments were the most salient, what drove them, and did the prediction get worse after them?
-- driven_by: the dimension that is highest above its mean over the run. nll_after: of the next 32 tokens of the text.
WITH means AS (
  SELECT AVG(surprise) AS surprise, AVG(novelty) AS novelty, AVG(arousal) AS arousal, AVG(reward) AS reward,
    AVG(conflict) AS conflict
  FROM v_salience WHERE run_id = $run_id
), moments AS (
  SELECT s.*, LEAD(s.nll) OVER (PARTITION BY s.component, s.ordinal ORDER BY s.position) AS nll_after,
    s.surprise - m.surprise AS a, s.novelty - m.novelty AS b, s.arousal - m.arousal AS c,
    s.reward - m.reward AS d, s.conflict - m.conflict AS e
  FROM v_salience s CROSS JOIN means m
  WHERE s.run_id = $run_id
)
SELECT q.text_id, q.context, s.component, s.position, ROUND(s.salience, 4) AS salience,
  CASE
    WHEN a >= b AND a >= c AND a >= d AND a >= e THEN 'surprise'
    WHEN b >= c AND b >= d AND b >= e THEN 'novelty'
    WHEN c >= d AND c >= e THEN 'arousal'
    WHEN d >= e THEN 'reward'
    ELSE 'conflict'
  END AS driven_by,
  ROUND(s.nll, 3) AS nll, ROUND(s.nll_after, 3) AS nll_after, ROUND(q.nll, 3) AS nll_of_text, s.text
FROM moments s JOIN v_sequence q ON q.run_id = s.run_id AND q.ordinal = s.ordinal
ORDER BY s.salience DESC, s.component, s.ordinal, s.position
LIMIT 20
