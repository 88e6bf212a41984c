-- Queries 60 to 69 of TPC-DS; source, copyright and what was changed: see tpcds-01-09.sql.

-- 60
with ss as (
    select i_item_id, sum(ss_ext_sales_price) total_sales
    from store_sales, date_dim, customer_address, item
    where i_item_id in (select i_item_id from item where i_category = 'Music') and ss_item_sk = i_item_sk
        and ss_sold_date_sk = d_date_sk and d_year = 1998 and d_moy = 9 and ss_addr_sk = ca_address_sk
        and ca_gmt_offset = -5
    group by i_item_id),
cs as (
    select i_item_id, sum(cs_ext_sales_price) total_sales
    from catalog_sales, date_dim, customer_address, item
    where i_item_id in (select i_item_id from item where i_category = 'Music') and cs_item_sk = i_item_sk
        and cs_sold_date_sk = d_date_sk and d_year = 1998 and d_moy = 9 and cs_bill_addr_sk = ca_address_sk
        and ca_gmt_offset = -5
    group by i_item_id),
ws as (
    select i_item_id, sum(ws_ext_sales_price) total_sales
    from web_sales, date_dim, customer_address, item
    where i_item_id in (select i_item_id from item where i_category = 'Music') and ws_item_sk = i_item_sk
        and ws_sold_date_sk = d_date_sk and d_year = 1998 and d_moy = 9 and ws_bill_addr_sk = ca_address_sk
        and ca_gmt_offset = -5
    group by i_item_id)
select i_item_id, sum(total_sales) total_sales
from (
    select *
    from ss
    union all
    select *
    from cs
    union all
    select *
    from ws) tmp1
group by i_item_id
order by i_item_id, total_sales
limit 100;

-- 61
select promotions, total, cast(promotions as decimal(15, 4)) / cast(total as decimal(15, 4)) * 100
from (
    select sum(ss_ext_sales_price) promotions
    from store_sales, store, promotion, date_dim, customer, customer_address, item
    where ss_sold_date_sk = d_date_sk and ss_store_sk = s_store_sk and ss_promo_sk = p_promo_sk
        and ss_customer_sk = c_customer_sk and ca_address_sk = c_current_addr_sk and ss_item_sk = i_item_sk
        and ca_gmt_offset = -5 and i_category = 'Jewelry'
        and (p_channel_dmail = 'Y' or p_channel_email = 'Y' or p_channel_tv = 'Y') and s_gmt_offset = -5
        and d_year = 1998 and d_moy = 11) promotional_sales, (
        select sum(ss_ext_sales_price) total
        from store_sales, store, date_dim, customer, customer_address, item
        where ss_sold_date_sk = d_date_sk and ss_store_sk = s_store_sk and ss_customer_sk = c_customer_sk
            and ca_address_sk = c_current_addr_sk and ss_item_sk = i_item_sk and ca_gmt_offset = -5
            and i_category = 'Jewelry' and s_gmt_offset = -5 and d_year = 1998 and d_moy = 11) all_sales
order by promotions, total
limit 100;

-- 62
select substr(w_warehouse_name, 1, 20), sm_type, web_name,
    sum(case when (ws_ship_date_sk - ws_sold_date_sk <= 30) then 1 else 0 end) as days_30,
    sum(case when (ws_ship_date_sk - ws_sold_date_sk > 30) and (ws_ship_date_sk - ws_sold_date_sk <= 60) then 1
        else 0 end) as days_31_60,
    sum(case when (ws_ship_date_sk - ws_sold_date_sk > 60) and (ws_ship_date_sk - ws_sold_date_sk <= 90) then 1
        else 0 end) as days_61_90,
    sum(case when (ws_ship_date_sk - ws_sold_date_sk > 90) and (ws_ship_date_sk - ws_sold_date_sk <= 120) then 1
        else 0 end) as days_91_120,
    sum(case when (ws_ship_date_sk - ws_sold_date_sk > 120) then 1 else 0 end) as days_above_120
from web_sales, warehouse, ship_mode, web_site, date_dim
where d_month_seq between 1200 and 1200 + 11 and ws_ship_date_sk = d_date_sk and ws_warehouse_sk = w_warehouse_sk
    and ws_ship_mode_sk = sm_ship_mode_sk and ws_web_site_sk = web_site_sk
group by substr(w_warehouse_name, 1, 20), sm_type, web_name
order by substr(w_warehouse_name, 1, 20), sm_type, web_name
limit 100;

-- 63
select *
from (
    select i_manager_id, sum(ss_sales_price) sum_sales,
        avg(sum(ss_sales_price)) over (partition by i_manager_id) avg_monthly_sales
    from item, store_sales, date_dim, store
    where ss_item_sk = i_item_sk and ss_sold_date_sk = d_date_sk and ss_store_sk = s_store_sk
        and d_month_seq in (1200, 1200 + 1, 1200 + 2, 1200 + 3, 1200 + 4, 1200 + 5, 1200 + 6, 1200 + 7, 1200 + 8,
            1200 + 9, 1200 + 10, 1200 + 11)
        and ((i_category in ('Books', 'Children', 'Electronics')
            and i_class in ('personal', 'portable', 'reference', 'self-help')
            and i_brand in ('scholaramalgamalg #14', 'scholaramalgamalg #7', 'exportiunivamalg #9',
                'scholaramalgamalg #9'))
            or (i_category in ('Women', 'Music', 'Men')
                and i_class in ('accessories', 'classical', 'fragrances', 'pants')
                and i_brand in ('amalgimporto #1', 'edu packscholar #1', 'exportiimporto #1', 'importoamalg #1')))
    group by i_manager_id, d_moy) tmp1
where case when avg_monthly_sales > 0 then abs(sum_sales - avg_monthly_sales) / avg_monthly_sales else null end > 0.1
order by i_manager_id, avg_monthly_sales, sum_sales
limit 100;

-- 64
with cs_ui as (
    select cs_item_sk, sum(cs_ext_list_price) as sale,
        sum(cr_refunded_cash + cr_reversed_charge + cr_store_credit) as refund
    from catalog_sales, catalog_returns
    where cs_item_sk = cr_item_sk and cs_order_number = cr_order_number
    group by cs_item_sk
    having sum(cs_ext_list_price) > 2 * sum(cr_refunded_cash + cr_reversed_charge + cr_store_credit)),
cross_sales as (
    select i_product_name product_name, i_item_sk item_sk, s_store_name store_name, s_zip store_zip,
        ad1.ca_street_number b_street_number, ad1.ca_street_name b_street_name, ad1.ca_city b_city, ad1.ca_zip b_zip,
        ad2.ca_street_number c_street_number, ad2.ca_street_name c_street_name, ad2.ca_city c_city, ad2.ca_zip c_zip,
        d1.d_year as syear, d2.d_year as fsyear, d3.d_year s2year, count(*) cnt, sum(ss_wholesale_cost) s1,
        sum(ss_list_price) s2, sum(ss_coupon_amt) s3
    from store_sales, store_returns, cs_ui, date_dim d1, date_dim d2, date_dim d3, store, customer,
        customer_demographics cd1, customer_demographics cd2, promotion, household_demographics hd1,
        household_demographics hd2, customer_address ad1, customer_address ad2, income_band ib1, income_band ib2, item
    where ss_store_sk = s_store_sk and ss_sold_date_sk = d1.d_date_sk and ss_customer_sk = c_customer_sk
        and ss_cdemo_sk = cd1.cd_demo_sk and ss_hdemo_sk = hd1.hd_demo_sk and ss_addr_sk = ad1.ca_address_sk
        and ss_item_sk = i_item_sk and ss_item_sk = sr_item_sk and ss_ticket_number = sr_ticket_number
        and ss_item_sk = cs_ui.cs_item_sk and c_current_cdemo_sk = cd2.cd_demo_sk
        and c_current_hdemo_sk = hd2.hd_demo_sk and c_current_addr_sk = ad2.ca_address_sk
        and c_first_sales_date_sk = d2.d_date_sk and c_first_shipto_date_sk = d3.d_date_sk and ss_promo_sk = p_promo_sk
        and hd1.hd_income_band_sk = ib1.ib_income_band_sk and hd2.hd_income_band_sk = ib2.ib_income_band_sk
        and cd1.cd_marital_status <> cd2.cd_marital_status
        and i_color in ('purple', 'burlywood', 'indian', 'spring', 'floral', 'medium')
        and i_current_price between 64 and 64 + 10 and i_current_price between 64 + 1 and 64 + 15
    group by i_product_name, i_item_sk, s_store_name, s_zip, ad1.ca_street_number, ad1.ca_street_name, ad1.ca_city,
        ad1.ca_zip, ad2.ca_street_number, ad2.ca_street_name, ad2.ca_city, ad2.ca_zip, d1.d_year, d2.d_year, d3.d_year)
select cs1.product_name, cs1.store_name, cs1.store_zip, cs1.b_street_number, cs1.b_street_name, cs1.b_city, cs1.b_zip,
    cs1.c_street_number, cs1.c_street_name, cs1.c_city, cs1.c_zip, cs1.syear cs1syear, cs1.cnt cs1cnt, cs1.s1 as s11,
    cs1.s2 as s21, cs1.s3 as s31, cs2.s1 as s12, cs2.s2 as s22, cs2.s3 as s32, cs2.syear, cs2.cnt
from cross_sales cs1, cross_sales cs2
where cs1.item_sk = cs2.item_sk and cs1.syear = 1999 and cs2.syear = 1999 + 1 and cs2.cnt <= cs1.cnt
    and cs1.store_name = cs2.store_name and cs1.store_zip = cs2.store_zip
order by cs1.product_name, cs1.store_name, cs2.cnt, cs1.s1, cs2.s1;

-- 65
select s_store_name, i_item_desc, sc.revenue, i_current_price, i_wholesale_cost, i_brand
from store, item, (
        select ss_store_sk, avg(revenue) as ave
        from (
            select ss_store_sk, ss_item_sk, sum(ss_sales_price) as revenue
            from store_sales, date_dim
            where ss_sold_date_sk = d_date_sk and d_month_seq between 1176 and 1176 + 11
            group by ss_store_sk, ss_item_sk) sa
        group by ss_store_sk) sb, (
        select ss_store_sk, ss_item_sk, sum(ss_sales_price) as revenue
        from store_sales, date_dim
        where ss_sold_date_sk = d_date_sk and d_month_seq between 1176 and 1176 + 11
        group by ss_store_sk, ss_item_sk) sc
where sb.ss_store_sk = sc.ss_store_sk and sc.revenue <= 0.1 * sb.ave and s_store_sk = sc.ss_store_sk
    and i_item_sk = sc.ss_item_sk
order by s_store_name, i_item_desc
limit 100;

-- 66
select w_warehouse_name, w_warehouse_sq_ft, w_city, w_county, w_state, w_country, ship_carriers, year,
    sum(jan_sales) as jan_sales, sum(feb_sales) as feb_sales, sum(mar_sales) as mar_sales, sum(apr_sales) as apr_sales,
    sum(may_sales) as may_sales, sum(jun_sales) as jun_sales, sum(jul_sales) as jul_sales, sum(aug_sales) as aug_sales,
    sum(sep_sales) as sep_sales, sum(oct_sales) as oct_sales, sum(nov_sales) as nov_sales, sum(dec_sales) as dec_sales,
    sum(jan_sales / w_warehouse_sq_ft) as jan_sales_per_sq_foot,
    sum(feb_sales / w_warehouse_sq_ft) as feb_sales_per_sq_foot,
    sum(mar_sales / w_warehouse_sq_ft) as mar_sales_per_sq_foot,
    sum(apr_sales / w_warehouse_sq_ft) as apr_sales_per_sq_foot,
    sum(may_sales / w_warehouse_sq_ft) as may_sales_per_sq_foot,
    sum(jun_sales / w_warehouse_sq_ft) as jun_sales_per_sq_foot,
    sum(jul_sales / w_warehouse_sq_ft) as jul_sales_per_sq_foot,
    sum(aug_sales / w_warehouse_sq_ft) as aug_sales_per_sq_foot,
    sum(sep_sales / w_warehouse_sq_ft) as sep_sales_per_sq_foot,
    sum(oct_sales / w_warehouse_sq_ft) as oct_sales_per_sq_foot,
    sum(nov_sales / w_warehouse_sq_ft) as nov_sales_per_sq_foot,
    sum(dec_sales / w_warehouse_sq_ft) as dec_sales_per_sq_foot, sum(jan_net) as jan_net, sum(feb_net) as feb_net,
    sum(mar_net) as mar_net, sum(apr_net) as apr_net, sum(may_net) as may_net, sum(jun_net) as jun_net,
    sum(jul_net) as jul_net, sum(aug_net) as aug_net, sum(sep_net) as sep_net, sum(oct_net) as oct_net,
    sum(nov_net) as nov_net, sum(dec_net) as dec_net
from (
    select w_warehouse_name, w_warehouse_sq_ft, w_city, w_county, w_state, w_country,
        'DHL' || ',' || 'BARIAN' as ship_carriers, d_year as year,
        sum(case when d_moy = 1 then ws_ext_sales_price * ws_quantity else 0 end) as jan_sales,
        sum(case when d_moy = 2 then ws_ext_sales_price * ws_quantity else 0 end) as feb_sales,
        sum(case when d_moy = 3 then ws_ext_sales_price * ws_quantity else 0 end) as mar_sales,
        sum(case when d_moy = 4 then ws_ext_sales_price * ws_quantity else 0 end) as apr_sales,
        sum(case when d_moy = 5 then ws_ext_sales_price * ws_quantity else 0 end) as may_sales,
        sum(case when d_moy = 6 then ws_ext_sales_price * ws_quantity else 0 end) as jun_sales,
        sum(case when d_moy = 7 then ws_ext_sales_price * ws_quantity else 0 end) as jul_sales,
        sum(case when d_moy = 8 then ws_ext_sales_price * ws_quantity else 0 end) as aug_sales,
        sum(case when d_moy = 9 then ws_ext_sales_price * ws_quantity else 0 end) as sep_sales,
        sum(case when d_moy = 10 then ws_ext_sales_price * ws_quantity else 0 end) as oct_sales,
        sum(case when d_moy = 11 then ws_ext_sales_price * ws_quantity else 0 end) as nov_sales,
        sum(case when d_moy = 12 then ws_ext_sales_price * ws_quantity else 0 end) as dec_sales,
        sum(case when d_moy = 1 then ws_net_paid * ws_quantity else 0 end) as jan_net,
        sum(case when d_moy = 2 then ws_net_paid * ws_quantity else 0 end) as feb_net,
        sum(case when d_moy = 3 then ws_net_paid * ws_quantity else 0 end) as mar_net,
        sum(case when d_moy = 4 then ws_net_paid * ws_quantity else 0 end) as apr_net,
        sum(case when d_moy = 5 then ws_net_paid * ws_quantity else 0 end) as may_net,
        sum(case when d_moy = 6 then ws_net_paid * ws_quantity else 0 end) as jun_net,
        sum(case when d_moy = 7 then ws_net_paid * ws_quantity else 0 end) as jul_net,
        sum(case when d_moy = 8 then ws_net_paid * ws_quantity else 0 end) as aug_net,
        sum(case when d_moy = 9 then ws_net_paid * ws_quantity else 0 end) as sep_net,
        sum(case when d_moy = 10 then ws_net_paid * ws_quantity else 0 end) as oct_net,
        sum(case when d_moy = 11 then ws_net_paid * ws_quantity else 0 end) as nov_net,
        sum(case when d_moy = 12 then ws_net_paid * ws_quantity else 0 end) as dec_net
    from web_sales, warehouse, date_dim, time_dim, ship_mode
    where ws_warehouse_sk = w_warehouse_sk and ws_sold_date_sk = d_date_sk and ws_sold_time_sk = t_time_sk
        and ws_ship_mode_sk = sm_ship_mode_sk and d_year = 2001 and t_time between 30838 and 30838 + 28800
        and sm_carrier in ('DHL', 'BARIAN')
    group by w_warehouse_name, w_warehouse_sq_ft, w_city, w_county, w_state, w_country, d_year
    union all
    select w_warehouse_name, w_warehouse_sq_ft, w_city, w_county, w_state, w_country,
        'DHL' || ',' || 'BARIAN' as ship_carriers, d_year as year,
        sum(case when d_moy = 1 then cs_sales_price * cs_quantity else 0 end) as jan_sales,
        sum(case when d_moy = 2 then cs_sales_price * cs_quantity else 0 end) as feb_sales,
        sum(case when d_moy = 3 then cs_sales_price * cs_quantity else 0 end) as mar_sales,
        sum(case when d_moy = 4 then cs_sales_price * cs_quantity else 0 end) as apr_sales,
        sum(case when d_moy = 5 then cs_sales_price * cs_quantity else 0 end) as may_sales,
        sum(case when d_moy = 6 then cs_sales_price * cs_quantity else 0 end) as jun_sales,
        sum(case when d_moy = 7 then cs_sales_price * cs_quantity else 0 end) as jul_sales,
        sum(case when d_moy = 8 then cs_sales_price * cs_quantity else 0 end) as aug_sales,
        sum(case when d_moy = 9 then cs_sales_price * cs_quantity else 0 end) as sep_sales,
        sum(case when d_moy = 10 then cs_sales_price * cs_quantity else 0 end) as oct_sales,
        sum(case when d_moy = 11 then cs_sales_price * cs_quantity else 0 end) as nov_sales,
        sum(case when d_moy = 12 then cs_sales_price * cs_quantity else 0 end) as dec_sales,
        sum(case when d_moy = 1 then cs_net_paid_inc_tax * cs_quantity else 0 end) as jan_net,
        sum(case when d_moy = 2 then cs_net_paid_inc_tax * cs_quantity else 0 end) as feb_net,
        sum(case when d_moy = 3 then cs_net_paid_inc_tax * cs_quantity else 0 end) as mar_net,
        sum(case when d_moy = 4 then cs_net_paid_inc_tax * cs_quantity else 0 end) as apr_net,
        sum(case when d_moy = 5 then cs_net_paid_inc_tax * cs_quantity else 0 end) as may_net,
        sum(case when d_moy = 6 then cs_net_paid_inc_tax * cs_quantity else 0 end) as jun_net,
        sum(case when d_moy = 7 then cs_net_paid_inc_tax * cs_quantity else 0 end) as jul_net,
        sum(case when d_moy = 8 then cs_net_paid_inc_tax * cs_quantity else 0 end) as aug_net,
        sum(case when d_moy = 9 then cs_net_paid_inc_tax * cs_quantity else 0 end) as sep_net,
        sum(case when d_moy = 10 then cs_net_paid_inc_tax * cs_quantity else 0 end) as oct_net,
        sum(case when d_moy = 11 then cs_net_paid_inc_tax * cs_quantity else 0 end) as nov_net,
        sum(case when d_moy = 12 then cs_net_paid_inc_tax * cs_quantity else 0 end) as dec_net
    from catalog_sales, warehouse, date_dim, time_dim, ship_mode
    where cs_warehouse_sk = w_warehouse_sk and cs_sold_date_sk = d_date_sk and cs_sold_time_sk = t_time_sk
        and cs_ship_mode_sk = sm_ship_mode_sk and d_year = 2001 and t_time between 30838 and 30838 + 28800
        and sm_carrier in ('DHL', 'BARIAN')
    group by w_warehouse_name, w_warehouse_sq_ft, w_city, w_county, w_state, w_country, d_year) x
group by w_warehouse_name, w_warehouse_sq_ft, w_city, w_county, w_state, w_country, ship_carriers, year
order by w_warehouse_name
limit 100;

-- 67
select *
from (
    select i_category, i_class, i_brand, i_product_name, d_year, d_qoy, d_moy, s_store_id, sumsales,
        rank() over (partition by i_category order by sumsales desc) rk
    from (
        select i_category, i_class, i_brand, i_product_name, d_year, d_qoy, d_moy, s_store_id,
            sum(coalesce(ss_sales_price * ss_quantity, 0)) sumsales
        from store_sales, date_dim, store, item
        where ss_sold_date_sk = d_date_sk and ss_item_sk = i_item_sk and ss_store_sk = s_store_sk
            and d_month_seq between 1200 and 1200 + 11
        group by rollup(i_category, i_class, i_brand, i_product_name, d_year, d_qoy, d_moy, s_store_id)) dw1) dw2
where rk <= 100
order by i_category, i_class, i_brand, i_product_name, d_year, d_qoy, d_moy, s_store_id, sumsales, rk
limit 100;

-- 68
select c_last_name, c_first_name, ca_city, bought_city, ss_ticket_number, extended_price, extended_tax, list_price
from (
    select ss_ticket_number, ss_customer_sk, ca_city as bought_city, sum(ss_ext_sales_price) as extended_price,
        sum(ss_ext_list_price) as list_price, sum(ss_ext_tax) as extended_tax
    from store_sales, date_dim, store, household_demographics, customer_address
    where ss_sold_date_sk = d_date_sk and ss_store_sk = s_store_sk and ss_hdemo_sk = hd_demo_sk
        and ss_addr_sk = ca_address_sk and d_dom between 1 and 2 and (hd_dep_count = 4 or hd_vehicle_count = 3)
        and d_year in (1999, 2000, 2001) and s_city in ('Midway', 'Fairview')
    group by ss_ticket_number, ss_customer_sk, ss_addr_sk, ca_city) dn, customer, customer_address current_addr
where ss_customer_sk = c_customer_sk and customer.c_current_addr_sk = current_addr.ca_address_sk
    and current_addr.ca_city <> bought_city
order by c_last_name, ss_ticket_number, c_first_name, ca_city, bought_city, extended_price
limit 100;

-- 69
select cd_gender, cd_marital_status, cd_education_status, count(*) cnt1, cd_purchase_estimate, count(*) cnt2,
    cd_credit_rating, count(*) cnt3
from customer c, customer_address ca, customer_demographics
where c.c_current_addr_sk = ca.ca_address_sk and ca_state in ('KY', 'GA', 'NM') and cd_demo_sk = c.c_current_cdemo_sk
    and exists (
        select *
        from store_sales, date_dim
        where c.c_customer_sk = ss_customer_sk and ss_sold_date_sk = d_date_sk and d_year = 2001
            and d_moy between 4 and 4 + 2) and (not exists (
        select *
        from web_sales, date_dim
        where c.c_customer_sk = ws_bill_customer_sk and ws_sold_date_sk = d_date_sk and d_year = 2001
            and d_moy between 4 and 4 + 2) and not exists (
            select *
            from catalog_sales, date_dim
            where c.c_customer_sk = cs_ship_customer_sk and cs_sold_date_sk = d_date_sk and d_year = 2001
                and d_moy between 4 and 4 + 2))
group by cd_gender, cd_marital_status, cd_education_status, cd_purchase_estimate, cd_credit_rating
order by cd_gender, cd_marital_status, cd_education_status, cd_purchase_estimate, cd_credit_rating
limit 100;
