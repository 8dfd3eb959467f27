-- Whose trust differs most between two runs, and by more than the intervals allow?
-- pairs, apart_total and mean_change are over all experts that both runs have.
select
    a.component, a.layer, a.expert, b.trust as other, a.trust as this, a.trust - b.trust as change,
    a.load - b.load as load_change,
    a.trust_low > b.trust_high or a.trust_high < b.trust_low as apart,
    count(*) over () as pairs,
    count_if(a.trust_low > b.trust_high or a.trust_high < b.trust_low) over () as apart_total,
    avg(abs(a.trust - b.trust)) over () as mean_change
from v_expert_trust a
join v_expert_trust b using (component, layer, expert, context)
where a.run_id = $run_id and b.run_id = $other_id and context = '*'
order by abs(change) desc, component, layer, expert
limit 20
