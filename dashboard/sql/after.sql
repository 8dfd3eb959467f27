-- Are salient moments followed by harder text?
-- Windows in four groups by salience, 4 is the most salient; mean NLL of the window before, itself and the next one.
with near as (
    select
        salience, case when predicted > 0 then nll end as nll,
        lag(case when predicted > 0 then nll end) over text_ as nll_before,
        lead(case when predicted > 0 then nll end) over text_ as nll_after
    from v_salience
    where run_id = $run_id and component = $component
    window text_ as (partition by ordinal order by position)
), grouped as (
    select *, ntile(4) over (order by salience) as quarter from near
)
select
    quarter, count(*) as windows, avg(salience) as salience,
    avg(nll_before) as nll_before, avg(nll) as nll, avg(nll_after) as nll_after
from grouped
group by quarter
order by quarter desc
