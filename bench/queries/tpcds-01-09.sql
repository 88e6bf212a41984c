-- The 99 queries of TPC-DS (specification 3.2, appendix B), with the values of its qualification run. They lie in the files
-- tpcds-*.sql; each is preceded by its number. Queries 14, 23, 24 and 39 are two statements each.
--
-- From: TPC Benchmark DS, Standard Specification, Version 3.2.0, June 2021. Copyright 2021 Transaction Processing Performance
-- Council. Copied by permission of the Transaction Processing Performance Council.
--
-- What differs from the published text, so that several engines read it:
-- - a date plus days is written date + interval '14' day (5, 12, 16, 20, 21, 32, 37, 40, 72, 77, 80, 82, 92, 94, 95, 98);
-- - headings of several words are names: order_count, days_31_60 (16, 32, 50, 62, 92, 94, 95, 99);
-- - every subquery in FROM has a name, and so has every column that is selected twice;
-- - the subquery "at" is at_ (90), because AT is a keyword of DuckDB;
-- - a value that the qualification run has several times in a list stands there once.

-- 1
with customer_total_return as (
    select sr_customer_sk as ctr_customer_sk, sr_store_sk as ctr_store_sk, sum(sr_return_amt) as ctr_total_return
    from store_returns, date_dim
    where sr_returned_date_sk = d_date_sk and d_year = 2000
    group by sr_customer_sk, sr_store_sk)
select c_customer_id
from customer_total_return ctr1, store, customer
where ctr1.ctr_total_return > (
    select avg(ctr_total_return) * 1.2
    from customer_total_return ctr2
    where ctr1.ctr_store_sk = ctr2.ctr_store_sk) and s_store_sk = ctr1.ctr_store_sk and s_state = 'TN'
    and ctr1.ctr_customer_sk = c_customer_sk
order by c_customer_id
limit 100;

-- 2
with wscs as (
    select sold_date_sk, sales_price
    from (
        select ws_sold_date_sk sold_date_sk, ws_ext_sales_price sales_price
        from web_sales
        union all
        select cs_sold_date_sk sold_date_sk, cs_ext_sales_price sales_price
        from catalog_sales) sq1),
wswscs as (
    select d_week_seq, sum(case when (d_day_name = 'Sunday') then sales_price else null end) sun_sales,
        sum(case when (d_day_name = 'Monday') then sales_price else null end) mon_sales,
        sum(case when (d_day_name = 'Tuesday') then sales_price else null end) tue_sales,
        sum(case when (d_day_name = 'Wednesday') then sales_price else null end) wed_sales,
        sum(case when (d_day_name = 'Thursday') then sales_price else null end) thu_sales,
        sum(case when (d_day_name = 'Friday') then sales_price else null end) fri_sales,
        sum(case when (d_day_name = 'Saturday') then sales_price else null end) sat_sales
    from wscs, date_dim
    where d_date_sk = sold_date_sk
    group by d_week_seq)
select d_week_seq1, round(sun_sales1 / sun_sales2, 2) r1, round(mon_sales1 / mon_sales2, 2) r2,
    round(tue_sales1 / tue_sales2, 2) r3, round(wed_sales1 / wed_sales2, 2) r4, round(thu_sales1 / thu_sales2, 2) r5,
    round(fri_sales1 / fri_sales2, 2) r6, round(sat_sales1 / sat_sales2, 2)
from (
    select wswscs.d_week_seq d_week_seq1, sun_sales sun_sales1, mon_sales mon_sales1, tue_sales tue_sales1,
        wed_sales wed_sales1, thu_sales thu_sales1, fri_sales fri_sales1, sat_sales sat_sales1
    from wswscs, date_dim
    where date_dim.d_week_seq = wswscs.d_week_seq and d_year = 2001) y, (
        select wswscs.d_week_seq d_week_seq2, sun_sales sun_sales2, mon_sales mon_sales2, tue_sales tue_sales2,
            wed_sales wed_sales2, thu_sales thu_sales2, fri_sales fri_sales2, sat_sales sat_sales2
        from wswscs, date_dim
        where date_dim.d_week_seq = wswscs.d_week_seq and d_year = 2001 + 1) z
where d_week_seq1 = d_week_seq2 - 53
order by d_week_seq1;

-- 3
select dt.d_year, item.i_brand_id as brand_id, item.i_brand as brand, sum(ss_ext_sales_price) as sum_agg
from date_dim dt, store_sales, item
where dt.d_date_sk = store_sales.ss_sold_date_sk and store_sales.ss_item_sk = item.i_item_sk
    and item.i_manufact_id = 128 and dt.d_moy = 11
group by dt.d_year, item.i_brand, item.i_brand_id
order by dt.d_year, sum_agg desc, brand_id
limit 100;

-- 4
with year_total as (
    select c_customer_id customer_id, c_first_name customer_first_name, c_last_name customer_last_name,
        c_preferred_cust_flag customer_preferred_cust_flag, c_birth_country customer_birth_country,
        c_login customer_login, c_email_address customer_email_address, d_year dyear,
        sum(((ss_ext_list_price - ss_ext_wholesale_cost - ss_ext_discount_amt) + ss_ext_sales_price) / 2) year_total,
        's' sale_type
    from customer, store_sales, date_dim
    where c_customer_sk = ss_customer_sk and ss_sold_date_sk = d_date_sk
    group by c_customer_id, c_first_name, c_last_name, c_preferred_cust_flag, c_birth_country, c_login, c_email_address,
        d_year
    union all
    select c_customer_id customer_id, c_first_name customer_first_name, c_last_name customer_last_name,
        c_preferred_cust_flag customer_preferred_cust_flag, c_birth_country customer_birth_country,
        c_login customer_login, c_email_address customer_email_address, d_year dyear,
        sum((((cs_ext_list_price - cs_ext_wholesale_cost - cs_ext_discount_amt) + cs_ext_sales_price) / 2)) year_total,
        'c' sale_type
    from customer, catalog_sales, date_dim
    where c_customer_sk = cs_bill_customer_sk and cs_sold_date_sk = d_date_sk
    group by c_customer_id, c_first_name, c_last_name, c_preferred_cust_flag, c_birth_country, c_login, c_email_address,
        d_year
    union all
    select c_customer_id customer_id, c_first_name customer_first_name, c_last_name customer_last_name,
        c_preferred_cust_flag customer_preferred_cust_flag, c_birth_country customer_birth_country,
        c_login customer_login, c_email_address customer_email_address, d_year dyear,
        sum((((ws_ext_list_price - ws_ext_wholesale_cost - ws_ext_discount_amt) + ws_ext_sales_price) / 2)) year_total,
        'w' sale_type
    from customer, web_sales, date_dim
    where c_customer_sk = ws_bill_customer_sk and ws_sold_date_sk = d_date_sk
    group by c_customer_id, c_first_name, c_last_name, c_preferred_cust_flag, c_birth_country, c_login, c_email_address,
        d_year)
select t_s_secyear.customer_id, t_s_secyear.customer_first_name, t_s_secyear.customer_last_name,
    t_s_secyear.customer_preferred_cust_flag
from year_total t_s_firstyear, year_total t_s_secyear, year_total t_c_firstyear, year_total t_c_secyear,
    year_total t_w_firstyear, year_total t_w_secyear
where t_s_secyear.customer_id = t_s_firstyear.customer_id and t_s_firstyear.customer_id = t_c_secyear.customer_id
    and t_s_firstyear.customer_id = t_c_firstyear.customer_id and t_s_firstyear.customer_id = t_w_firstyear.customer_id
    and t_s_firstyear.customer_id = t_w_secyear.customer_id and t_s_firstyear.sale_type = 's'
    and t_c_firstyear.sale_type = 'c' and t_w_firstyear.sale_type = 'w' and t_s_secyear.sale_type = 's'
    and t_c_secyear.sale_type = 'c' and t_w_secyear.sale_type = 'w' and t_s_firstyear.dyear = 2001
    and t_s_secyear.dyear = 2001 + 1 and t_c_firstyear.dyear = 2001 and t_c_secyear.dyear = 2001 + 1
    and t_w_firstyear.dyear = 2001 and t_w_secyear.dyear = 2001 + 1 and t_s_firstyear.year_total > 0
    and t_c_firstyear.year_total > 0 and t_w_firstyear.year_total > 0
    and case when t_c_firstyear.year_total > 0 then t_c_secyear.year_total / t_c_firstyear.year_total else null end
        > case when t_s_firstyear.year_total > 0 then t_s_secyear.year_total / t_s_firstyear.year_total else null end
    and case when t_c_firstyear.year_total > 0 then t_c_secyear.year_total / t_c_firstyear.year_total else null end
        > case when t_w_firstyear.year_total > 0 then t_w_secyear.year_total / t_w_firstyear.year_total else null end
order by t_s_secyear.customer_id, t_s_secyear.customer_first_name, t_s_secyear.customer_last_name,
    t_s_secyear.customer_preferred_cust_flag
limit 100;

-- 5
with ssr as (
    select s_store_id, sum(sales_price) as sales, sum(profit) as profit, sum(return_amt) as returns,
        sum(net_loss) as profit_loss
    from (
        select ss_store_sk as store_sk, ss_sold_date_sk as date_sk, ss_ext_sales_price as sales_price,
            ss_net_profit as profit, cast(0 as decimal(7, 2)) as return_amt, cast(0 as decimal(7, 2)) as net_loss
        from store_sales
        union all
        select sr_store_sk as store_sk, sr_returned_date_sk as date_sk, cast(0 as decimal(7, 2)) as sales_price,
            cast(0 as decimal(7, 2)) as profit, sr_return_amt as return_amt, sr_net_loss as net_loss
        from store_returns) salesreturns, date_dim, store
    where date_sk = d_date_sk
        and d_date between cast('2000-08-23' as date) and cast('2000-08-23' as date) + interval '14' day
        and store_sk = s_store_sk
    group by s_store_id),
csr as (
    select cp_catalog_page_id, sum(sales_price) as sales, sum(profit) as profit, sum(return_amt) as returns,
        sum(net_loss) as profit_loss
    from (
        select cs_catalog_page_sk as page_sk, cs_sold_date_sk as date_sk, cs_ext_sales_price as sales_price,
            cs_net_profit as profit, cast(0 as decimal(7, 2)) as return_amt, cast(0 as decimal(7, 2)) as net_loss
        from catalog_sales
        union all
        select cr_catalog_page_sk as page_sk, cr_returned_date_sk as date_sk, cast(0 as decimal(7, 2)) as sales_price,
            cast(0 as decimal(7, 2)) as profit, cr_return_amount as return_amt, cr_net_loss as net_loss
        from catalog_returns) salesreturns, date_dim, catalog_page
    where date_sk = d_date_sk
        and d_date between cast('2000-08-23' as date) and cast('2000-08-23' as date) + interval '14' day
        and page_sk = cp_catalog_page_sk
    group by cp_catalog_page_id),
wsr as (
    select web_site_id, sum(sales_price) as sales, sum(profit) as profit, sum(return_amt) as returns,
        sum(net_loss) as profit_loss
    from (
        select ws_web_site_sk as wsr_web_site_sk, ws_sold_date_sk as date_sk, ws_ext_sales_price as sales_price,
            ws_net_profit as profit, cast(0 as decimal(7, 2)) as return_amt, cast(0 as decimal(7, 2)) as net_loss
        from web_sales
        union all
        select ws_web_site_sk as wsr_web_site_sk, wr_returned_date_sk as date_sk,
            cast(0 as decimal(7, 2)) as sales_price, cast(0 as decimal(7, 2)) as profit, wr_return_amt as return_amt,
            wr_net_loss as net_loss
        from web_returns
            left outer join web_sales on (wr_item_sk = ws_item_sk and wr_order_number = ws_order_number)) salesreturns,
        date_dim, web_site
    where date_sk = d_date_sk
        and d_date between cast('2000-08-23' as date) and cast('2000-08-23' as date) + interval '14' day
        and wsr_web_site_sk = web_site_sk
    group by web_site_id)
select channel, id, sum(sales) as sales, sum(returns) as returns, sum(profit) as profit
from (
    select 'store channel' as channel, concat('store', s_store_id) as id, sales, returns,
        (profit - profit_loss) as profit
    from ssr
    union all
    select 'catalog channel' as channel, concat('catalog_page', cp_catalog_page_id) as id, sales, returns,
        (profit - profit_loss) as profit
    from csr
    union all
    select 'web channel' as channel, concat('web_site', web_site_id) as id, sales, returns,
        (profit - profit_loss) as profit
    from wsr) x
group by rollup(channel, id)
order by channel, id
limit 100;

-- 6
select a.ca_state state, count(*) cnt
from customer_address a, customer c, store_sales s, date_dim d, item i
where a.ca_address_sk = c.c_current_addr_sk and c.c_customer_sk = s.ss_customer_sk and s.ss_sold_date_sk = d.d_date_sk
    and s.ss_item_sk = i.i_item_sk
    and d.d_month_seq = (select distinct (d_month_seq) from date_dim where d_year = 2001 and d_moy = 1)
    and i.i_current_price > 1.2 * (select avg(j.i_current_price) from item j where j.i_category = i.i_category)
group by a.ca_state
having count(*) >= 10
order by cnt, a.ca_state
limit 100;

-- 7
select i_item_id, avg(ss_quantity) as agg1, avg(ss_list_price) as agg2, avg(ss_coupon_amt) as agg3,
    avg(ss_sales_price) as agg4
from store_sales, customer_demographics, date_dim, item, promotion
where ss_sold_date_sk = d_date_sk and ss_item_sk = i_item_sk and ss_cdemo_sk = cd_demo_sk and ss_promo_sk = p_promo_sk
    and cd_gender = 'M' and cd_marital_status = 'S' and cd_education_status = 'College'
    and (p_channel_email = 'N' or p_channel_event = 'N') and d_year = 2000
group by i_item_id
order by i_item_id
limit 100;

-- 8
select s_store_name, sum(ss_net_profit)
from store_sales, date_dim, store, (
        select ca_zip
        from (
            select substr(ca_zip, 1, 5) ca_zip
            from customer_address
            where substr(ca_zip, 1, 5) in ('24128', '76232', '65084', '87816', '83926', '77556', '20548', '26231',
                '43848', '15126', '91137', '61265', '98294', '25782', '17920', '18426', '98235', '40081', '84093',
                '28577', '55565', '17183', '54601', '67897', '22752', '86284', '18376', '38607', '45200', '21756',
                '29741', '96765', '23932', '89360', '29839', '25989', '28898', '91068', '72550', '10390', '18845',
                '47770', '82636', '41367', '76638', '86198', '81312', '37126', '39192', '88424', '72175', '81426',
                '53672', '10445', '42666', '66864', '66708', '41248', '48583', '82276', '18842', '78890', '49448',
                '14089', '38122', '34425', '79077', '19849', '43285', '39861', '66162', '77610', '13695', '99543',
                '83444', '83041', '12305', '57665', '68341', '25003', '57834', '62878', '49130', '81096', '18840',
                '27700', '23470', '50412', '21195', '16021', '76107', '71954', '68309', '18119', '98359', '64544',
                '10336', '86379', '27068', '39736', '98569', '28915', '24206', '56529', '57647', '54917', '42961',
                '91110', '63981', '14922', '36420', '23006', '67467', '32754', '30903', '20260', '31671', '51798',
                '72325', '85816', '68621', '13955', '36446', '41766', '68806', '16725', '15146', '22744', '35850',
                '88086', '51649', '18270', '52867', '39972', '96976', '63792', '11376', '94898', '13595', '10516',
                '90225', '58943', '39371', '94945', '28587', '96576', '57855', '28488', '26105', '83933', '25858',
                '34322', '44438', '73171', '30122', '34102', '22685', '71256', '78451', '54364', '13354', '45375',
                '40558', '56458', '28286', '45266', '47305', '69399', '83921', '26233', '11101', '15371', '69913',
                '35942', '15882', '25631', '24610', '44165', '99076', '33786', '70738', '26653', '14328', '72305',
                '62496', '22152', '10144', '64147', '48425', '14663', '21076', '18799', '30450', '63089', '81019',
                '68893', '24996', '51200', '51211', '45692', '92712', '70466', '79994', '22437', '25280', '38935',
                '71791', '73134', '56571', '14060', '19505', '72425', '56575', '74351', '68786', '51650', '20004',
                '18383', '76614', '11634', '18906', '15765', '41368', '73241', '76698', '78567', '97189', '28545',
                '76231', '75691', '22246', '51061', '90578', '56691', '68014', '51103', '94167', '57047', '14867',
                '73520', '15734', '63435', '25733', '35474', '24676', '94627', '53535', '17879', '15559', '53268',
                '59166', '11928', '59402', '33282', '45721', '43933', '68101', '33515', '36634', '71286', '19736',
                '58058', '55253', '67473', '41918', '19515', '36495', '19430', '22351', '77191', '91393', '49156',
                '50298', '87501', '18652', '53179', '18767', '63193', '23968', '65164', '68880', '21286', '72823',
                '58470', '67301', '13394', '31016', '70372', '67030', '40604', '24317', '45748', '39127', '26065',
                '77721', '31029', '31880', '60576', '24671', '45549', '13376', '50016', '33123', '19769', '22927',
                '97789', '46081', '72151', '15723', '46136', '51949', '68100', '96888', '64528', '14171', '79777',
                '28709', '11489', '25103', '32213', '78668', '22245', '15798', '27156', '37930', '62971', '21337',
                '51622', '67853', '10567', '38415', '15455', '58263', '42029', '60279', '37125', '56240', '88190',
                '50308', '26859', '64457', '89091', '82136', '62377', '36233', '63837', '58078', '17043', '30010',
                '60099', '28810', '98025', '29178', '87343', '73273', '30469', '64034', '39516', '86057', '21309',
                '90257', '67875', '40162', '11356', '73650', '61810', '72013', '30431', '22461', '19512', '13375',
                '55307', '30625', '83849', '68908', '26689', '96451', '38193', '46820', '88885', '84935', '69035',
                '83144', '47537', '56616', '94983', '48033', '69952', '25486', '61547', '27385', '61860', '58048',
                '56910', '16807', '17871', '35258', '31387', '35458', '35576')
            intersect
            select ca_zip
            from (
                select substr(ca_zip, 1, 5) ca_zip, count(*) cnt
                from customer_address, customer
                where ca_address_sk = c_current_addr_sk and c_preferred_cust_flag = 'Y'
                group by ca_zip
                having count(*) > 10) a1) a2) v1
where ss_store_sk = s_store_sk and ss_sold_date_sk = d_date_sk and d_qoy = 2 and d_year = 1998
    and (substr(s_zip, 1, 2) = substr(v1.ca_zip, 1, 2))
group by s_store_name
order by s_store_name
limit 100;

-- 9
select case when (select count(*) from store_sales where ss_quantity between 1 and 20)
    > 74129 then (select avg(ss_ext_discount_amt) from store_sales where ss_quantity between 1 and 20)
    else (select avg(ss_net_paid) from store_sales where ss_quantity between 1 and 20) end bucket1,
    case when (select count(*) from store_sales where ss_quantity between 21 and 40)
        > 122840 then (select avg(ss_ext_discount_amt) from store_sales where ss_quantity between 21 and 40)
        else (select avg(ss_net_paid) from store_sales where ss_quantity between 21 and 40) end bucket2,
    case when (select count(*) from store_sales where ss_quantity between 41 and 60)
        > 56580 then (select avg(ss_ext_discount_amt) from store_sales where ss_quantity between 41 and 60)
        else (select avg(ss_net_paid) from store_sales where ss_quantity between 41 and 60) end bucket3,
    case when (select count(*) from store_sales where ss_quantity between 61 and 80)
        > 10097 then (select avg(ss_ext_discount_amt) from store_sales where ss_quantity between 61 and 80)
        else (select avg(ss_net_paid) from store_sales where ss_quantity between 61 and 80) end bucket4,
    case when (select count(*) from store_sales where ss_quantity between 81 and 100)
        > 165306 then (select avg(ss_ext_discount_amt) from store_sales where ss_quantity between 81 and 100)
        else (select avg(ss_net_paid) from store_sales where ss_quantity between 81 and 100) end bucket5
from reason
where r_reason_sk = 1;
