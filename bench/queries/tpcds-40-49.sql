-- Queries 40 to 49 of TPC-DS; source, copyright and what was changed: see tpcds-01-09.sql.

-- 40
select w_state, i_item_id,
    sum(case
        when (cast(d_date as date) < cast('2000-03-11' as date)) then cs_sales_price - coalesce(cr_refunded_cash, 0)
        else 0 end) as sales_before,
    sum(case
        when (cast(d_date as date) >= cast('2000-03-11' as date)) then cs_sales_price - coalesce(cr_refunded_cash, 0)
        else 0 end) as sales_after
from catalog_sales
    left outer join catalog_returns on (cs_order_number = cr_order_number and cs_item_sk = cr_item_sk), warehouse, item,
    date_dim
where i_current_price between 0.99 and 1.49 and i_item_sk = cs_item_sk and cs_warehouse_sk = w_warehouse_sk
    and cs_sold_date_sk = d_date_sk
    and d_date between cast('2000-03-11' as date) - interval '30' day
        and cast('2000-03-11' as date) + interval '30' day
group by w_state, i_item_id
order by w_state, i_item_id
limit 100;

-- 41
select distinct (i_product_name)
from item i1
where i_manufact_id between 738 and 738 + 40 and (
        select count(*) as item_cnt
        from item
        where (i_manufact = i1.i_manufact
            and ((i_category = 'Women' and (i_color = 'powder' or i_color = 'khaki')
                and (i_units = 'Ounce' or i_units = 'Oz') and (i_size = 'medium' or i_size = 'extra large'))
                or (i_category = 'Women' and (i_color = 'brown' or i_color = 'honeydew')
                    and (i_units = 'Bunch' or i_units = 'Ton') and (i_size = 'N/A' or i_size = 'small'))
                or (i_category = 'Men' and (i_color = 'floral' or i_color = 'deep')
                    and (i_units = 'N/A' or i_units = 'Dozen') and (i_size = 'petite' or i_size = 'large'))
                or (i_category = 'Men' and (i_color = 'light' or i_color = 'cornflower')
                    and (i_units = 'Box' or i_units = 'Pound') and (i_size = 'medium' or i_size = 'extra large'))))
            or (i_manufact = i1.i_manufact
                and ((i_category = 'Women' and (i_color = 'midnight' or i_color = 'snow')
                    and (i_units = 'Pallet' or i_units = 'Gross') and (i_size = 'medium' or i_size = 'extra large'))
                    or (i_category = 'Women' and (i_color = 'cyan' or i_color = 'papaya')
                        and (i_units = 'Cup' or i_units = 'Dram') and (i_size = 'N/A' or i_size = 'small'))
                    or (i_category = 'Men' and (i_color = 'orange' or i_color = 'frosted')
                        and (i_units = 'Each' or i_units = 'Tbl') and (i_size = 'petite' or i_size = 'large'))
                    or (i_category = 'Men' and (i_color = 'forest' or i_color = 'ghost')
                        and (i_units = 'Lb' or i_units = 'Bundle')
                        and (i_size = 'medium' or i_size = 'extra large'))))) > 0
order by i_product_name
limit 100;

-- 42
select dt.d_year, item.i_category_id, item.i_category, sum(ss_ext_sales_price) as total
from date_dim dt, store_sales, item
where dt.d_date_sk = store_sales.ss_sold_date_sk and store_sales.ss_item_sk = item.i_item_sk
    and item.i_manager_id = 1 and dt.d_moy = 11 and dt.d_year = 2000
group by dt.d_year, item.i_category_id, item.i_category
order by total desc, dt.d_year, item.i_category_id, item.i_category
limit 100;

-- 43
select s_store_name, s_store_id,
    sum(case when d_day_name = 'Sunday' then ss_sales_price else null end) as sun_sales,
    sum(case when d_day_name = 'Monday' then ss_sales_price else null end) as mon_sales,
    sum(case when d_day_name = 'Tuesday' then ss_sales_price else null end) as tue_sales,
    sum(case when d_day_name = 'Wednesday' then ss_sales_price else null end) as wed_sales,
    sum(case when d_day_name = 'Thursday' then ss_sales_price else null end) as thu_sales,
    sum(case when d_day_name = 'Friday' then ss_sales_price else null end) as fri_sales,
    sum(case when d_day_name = 'Saturday' then ss_sales_price else null end) as sat_sales
from date_dim, store_sales, store
where d_date_sk = ss_sold_date_sk and s_store_sk = ss_store_sk and s_gmt_offset = -5 and d_year = 2000
group by s_store_name, s_store_id
order by s_store_name, s_store_id, sun_sales, mon_sales, tue_sales, wed_sales, thu_sales, fri_sales, sat_sales
limit 100;

-- 44
select asceding.rnk, i1.i_product_name best_performing, i2.i_product_name worst_performing
from (
    select *
    from (
        select item_sk, rank() over (order by rank_col asc) rnk
        from (
            select ss_item_sk item_sk, avg(ss_net_profit) rank_col
            from store_sales ss1
            where ss_store_sk = 4
            group by ss_item_sk
            having avg(ss_net_profit) > 0.9 * (
                select avg(ss_net_profit) rank_col
                from store_sales
                where ss_store_sk = 4 and ss_addr_sk is null
                group by ss_store_sk)) v1) v11
    where rnk < 11) asceding, (
        select *
        from (
            select item_sk, rank() over (order by rank_col desc) rnk
            from (
                select ss_item_sk item_sk, avg(ss_net_profit) rank_col
                from store_sales ss1
                where ss_store_sk = 4
                group by ss_item_sk
                having avg(ss_net_profit) > 0.9 * (
                    select avg(ss_net_profit) rank_col
                    from store_sales
                    where ss_store_sk = 4 and ss_addr_sk is null
                    group by ss_store_sk)) v2) v21
        where rnk < 11) descending, item i1, item i2
where asceding.rnk = descending.rnk and i1.i_item_sk = asceding.item_sk and i2.i_item_sk = descending.item_sk
order by asceding.rnk
limit 100;

-- 45
select ca_zip, ca_city, sum(ws_sales_price)
from web_sales, customer, customer_address, date_dim, item
where ws_bill_customer_sk = c_customer_sk and c_current_addr_sk = ca_address_sk and ws_item_sk = i_item_sk
    and (substr(ca_zip, 1, 5) in ('85669', '86197', '88274', '83405', '86475', '85392', '85460', '80348', '81792')
        or i_item_id in (select i_item_id from item where i_item_sk in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)))
    and ws_sold_date_sk = d_date_sk and d_qoy = 2 and d_year = 2001
group by ca_zip, ca_city
order by ca_zip, ca_city
limit 100;

-- 46
select c_last_name, c_first_name, ca_city, bought_city, ss_ticket_number, amt, profit
from (
    select ss_ticket_number, ss_customer_sk, ca_city bought_city, sum(ss_coupon_amt) amt, sum(ss_net_profit) profit
    from store_sales, date_dim, store, household_demographics, customer_address
    where store_sales.ss_sold_date_sk = date_dim.d_date_sk and store_sales.ss_store_sk = store.s_store_sk
        and store_sales.ss_hdemo_sk = household_demographics.hd_demo_sk
        and store_sales.ss_addr_sk = customer_address.ca_address_sk
        and (household_demographics.hd_dep_count = 4 or household_demographics.hd_vehicle_count = 3)
        and date_dim.d_dow in (6, 0) and date_dim.d_year in (1999, 1999 + 1, 1999 + 2)
        and store.s_city in ('Fairview', 'Midway')
    group by ss_ticket_number, ss_customer_sk, ss_addr_sk, ca_city) dn, customer, customer_address current_addr
where ss_customer_sk = c_customer_sk and customer.c_current_addr_sk = current_addr.ca_address_sk
    and current_addr.ca_city <> bought_city
order by c_last_name, c_first_name, ca_city, bought_city, ss_ticket_number
limit 100;

-- 47
with v1 as (
    select i_category, i_brand, s_store_name, s_company_name, d_year, d_moy, sum(ss_sales_price) sum_sales,
        avg(sum(ss_sales_price)) over (partition by i_category, i_brand, s_store_name, s_company_name,
            d_year) avg_monthly_sales,
        rank() over (partition by i_category, i_brand, s_store_name, s_company_name order by d_year, d_moy) rn
    from item, store_sales, date_dim, store
    where ss_item_sk = i_item_sk and ss_sold_date_sk = d_date_sk and ss_store_sk = s_store_sk
        and (d_year = 1999 or (d_year = 1999 - 1 and d_moy = 12) or (d_year = 1999 + 1 and d_moy = 1))
    group by i_category, i_brand, s_store_name, s_company_name, d_year, d_moy),
v2 as (
    select v1.i_category, v1.i_brand, v1.s_store_name, v1.s_company_name, v1.d_year, v1.d_moy, v1.avg_monthly_sales,
        v1.sum_sales, v1_lag.sum_sales psum, v1_lead.sum_sales nsum
    from v1, v1 v1_lag, v1 v1_lead
    where v1.i_category = v1_lag.i_category and v1.i_category = v1_lead.i_category and v1.i_brand = v1_lag.i_brand
        and v1.i_brand = v1_lead.i_brand and v1.s_store_name = v1_lag.s_store_name
        and v1.s_store_name = v1_lead.s_store_name and v1.s_company_name = v1_lag.s_company_name
        and v1.s_company_name = v1_lead.s_company_name and v1.rn = v1_lag.rn + 1 and v1.rn = v1_lead.rn - 1)
select *
from v2
where d_year = 1999 and avg_monthly_sales > 0
    and case when avg_monthly_sales > 0 then abs(sum_sales - avg_monthly_sales) / avg_monthly_sales else null end > 0.1
order by sum_sales - avg_monthly_sales, 3
limit 100;

-- 48
select sum(ss_quantity) as quantity
from store_sales, store, customer_demographics, customer_address, date_dim
where s_store_sk = ss_store_sk and ss_sold_date_sk = d_date_sk and d_year = 2000
    and ((cd_demo_sk = ss_cdemo_sk and cd_marital_status = 'M' and cd_education_status = '4 yr Degree'
            and ss_sales_price between 100.00 and 150.00)
        or (cd_demo_sk = ss_cdemo_sk and cd_marital_status = 'D' and cd_education_status = '2 yr Degree'
            and ss_sales_price between 50.00 and 100.00)
        or (cd_demo_sk = ss_cdemo_sk and cd_marital_status = 'S' and cd_education_status = 'College'
            and ss_sales_price between 150.00 and 200.00))
    and ((ss_addr_sk = ca_address_sk and ca_country = 'United States' and ca_state in ('CO', 'OH', 'TX')
            and ss_net_profit between 0 and 2000)
        or (ss_addr_sk = ca_address_sk and ca_country = 'United States' and ca_state in ('OR', 'MN', 'KY')
            and ss_net_profit between 150 and 3000)
        or (ss_addr_sk = ca_address_sk and ca_country = 'United States' and ca_state in ('VA', 'CA', 'MS')
            and ss_net_profit between 50 and 25000));

-- 49
select channel, item, return_ratio, return_rank, currency_rank
from (
    select 'web' as channel, web.item, web.return_ratio, web.return_rank, web.currency_rank
    from (
        select item, return_ratio, currency_ratio, rank() over (order by return_ratio) as return_rank,
            rank() over (order by currency_ratio) as currency_rank
        from (
            select ws.ws_item_sk as item,
                (cast(sum(coalesce(wr.wr_return_quantity, 0)) as decimal(15, 4))
                    / cast(sum(coalesce(ws.ws_quantity, 0)) as decimal(15, 4))) as return_ratio,
                (cast(sum(coalesce(wr.wr_return_amt, 0)) as decimal(15, 4))
                    / cast(sum(coalesce(ws.ws_net_paid, 0)) as decimal(15, 4))) as currency_ratio
            from web_sales ws
                left outer join web_returns wr on (ws.ws_order_number = wr.wr_order_number
                    and ws.ws_item_sk = wr.wr_item_sk), date_dim
            where wr.wr_return_amt > 10000 and ws.ws_net_profit > 1 and ws.ws_net_paid > 0 and ws.ws_quantity > 0
                and ws_sold_date_sk = d_date_sk and d_year = 2001 and d_moy = 12
            group by ws.ws_item_sk) in_web) web
    where (web.return_rank <= 10 or web.currency_rank <= 10)
    union
    select 'catalog' as channel, catalog.item, catalog.return_ratio, catalog.return_rank, catalog.currency_rank
    from (
        select item, return_ratio, currency_ratio, rank() over (order by return_ratio) as return_rank,
            rank() over (order by currency_ratio) as currency_rank
        from (
            select cs.cs_item_sk as item,
                (cast(sum(coalesce(cr.cr_return_quantity, 0)) as decimal(15, 4))
                    / cast(sum(coalesce(cs.cs_quantity, 0)) as decimal(15, 4))) as return_ratio,
                (cast(sum(coalesce(cr.cr_return_amount, 0)) as decimal(15, 4))
                    / cast(sum(coalesce(cs.cs_net_paid, 0)) as decimal(15, 4))) as currency_ratio
            from catalog_sales cs
                left outer join catalog_returns cr on (cs.cs_order_number = cr.cr_order_number
                    and cs.cs_item_sk = cr.cr_item_sk), date_dim
            where cr.cr_return_amount > 10000 and cs.cs_net_profit > 1 and cs.cs_net_paid > 0 and cs.cs_quantity > 0
                and cs_sold_date_sk = d_date_sk and d_year = 2001 and d_moy = 12
            group by cs.cs_item_sk) in_cat) catalog
    where (catalog.return_rank <= 10 or catalog.currency_rank <= 10)
    union
    select 'store' as channel, store.item, store.return_ratio, store.return_rank, store.currency_rank
    from (
        select item, return_ratio, currency_ratio, rank() over (order by return_ratio) as return_rank,
            rank() over (order by currency_ratio) as currency_rank
        from (
            select sts.ss_item_sk as item,
                (cast(sum(coalesce(sr.sr_return_quantity, 0)) as decimal(15, 4))
                    / cast(sum(coalesce(sts.ss_quantity, 0)) as decimal(15, 4))) as return_ratio,
                (cast(sum(coalesce(sr.sr_return_amt, 0)) as decimal(15, 4))
                    / cast(sum(coalesce(sts.ss_net_paid, 0)) as decimal(15, 4))) as currency_ratio
            from store_sales sts
                left outer join store_returns sr on (sts.ss_ticket_number = sr.sr_ticket_number
                    and sts.ss_item_sk = sr.sr_item_sk), date_dim
            where sr.sr_return_amt > 10000 and sts.ss_net_profit > 1 and sts.ss_net_paid > 0 and sts.ss_quantity > 0
                and ss_sold_date_sk = d_date_sk and d_year = 2001 and d_moy = 12
            group by sts.ss_item_sk) in_store) store
    where (store.return_rank <= 10 or store.currency_rank <= 10)) sq1
order by 1, 4, 5, 2
limit 100;
