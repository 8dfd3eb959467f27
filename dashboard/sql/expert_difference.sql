-- How does each expert's trust differ from that in another run, in one context?
select a.component, a.layer, a.expert, a.trust - b.trust as change, b.trust as other
from v_expert_trust a
left join v_expert_trust b
    on b.run_id = $other_id and b.component = a.component and b.layer = a.layer and b.expert = a.expert
    and b.context = a.context
where a.run_id = $run_id and a.context = $context
order by a.component, a.layer, a.expert
