-- How soon was an evicted expert loaded again?
-- An expert that came back within a pass or two had better stayed; one that never came back cost nothing.
with evicted as (
    select bytes, case when next_use_step >= 0 then next_use_step - step end as away
    from v_residency_event
    where run_id = $run_id and kind = 'evict'
), named as (
    select bytes, case
        when away is null then 6
        when away <= 1 then 1
        when away <= 4 then 2
        when away <= 16 then 3
        when away <= 64 then 4
        else 5
    end as place
    from evicted
)
select
    place, ['1 pass', '2 to 4', '5 to 16', '17 to 64', 'more than 64', 'not again'][place] as back_after,
    count(*) as evictions, sum(bytes)::double as bytes
from named
group by place
order by place
