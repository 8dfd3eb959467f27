-- Which experts are picked together with one, most beyond chance?
-- where_: in the same layer, or in the next one or the one before; follows: of the earlier expert's picks.
with pairs as (
    select other_layer as layer, other_expert as expert, layer as from_layer, count, lift
    from v_coactivation
    where run_id = $run_id and component = $component and layer = $layer and expert = $expert
    union all
    select layer, expert, layer as from_layer, count, lift
    from v_coactivation
    where run_id = $run_id and component = $component and other_layer = $layer and other_expert = $expert
)
select
    case when p.layer = $layer then 'same layer' when p.layer > $layer then 'next layer' else 'layer before' end
        as where_,
    p.layer, p.expert, p.count, p.lift, t.trust
from pairs p
join v_expert_trust t
    on t.run_id = $run_id and t.component = $component and t.layer = p.layer and t.expert = p.expert
    and t.context = '*'
where p.count >= 20
order by p.lift desc, p.layer, p.expert
limit 20
