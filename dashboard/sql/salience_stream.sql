-- How salient was a run, text after text, in at most 500 stretches?
-- Of each stretch the least, the greatest and the last window's salience: a mean would hide the peaks.
with parts as (
    select s.ordinal, s.position, s.salience, ntile(500) over (order by s.ordinal, s.position) as part
    from v_salience s
    where s.run_id = $run_id and s.component = $component
)
select
    part, min(ordinal) as first_text, max(ordinal) as last_text, min(salience) as least, max(salience) as greatest,
    arg_max(salience, (ordinal, position)) as last
from parts
group by part
order by part
