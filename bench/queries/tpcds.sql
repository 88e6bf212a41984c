-- Twelve of the queries of TPC-DS (specification 3.2, appendix B), with the values of its qualification run: those over the
-- store channel that scan facts and join them with dimensions. Each is preceded by its number.

-- 3
select dt.d_year, item.i_brand_id as brand_id, item.i_brand as brand, sum(ss_ext_sales_price) as sum_agg
from date_dim dt, store_sales, item
where dt.d_date_sk = store_sales.ss_sold_date_sk and store_sales.ss_item_sk = item.i_item_sk
    and item.i_manufact_id = 128 and dt.d_moy = 11
group by dt.d_year, item.i_brand, item.i_brand_id
order by dt.d_year, sum_agg desc, brand_id
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

-- 19
select i_brand_id as brand_id, i_brand as brand, i_manufact_id, i_manufact, sum(ss_ext_sales_price) as ext_price
from date_dim, store_sales, item, customer, customer_address, store
where d_date_sk = ss_sold_date_sk and ss_item_sk = i_item_sk and i_manager_id = 8 and d_moy = 11 and d_year = 1998
    and ss_customer_sk = c_customer_sk and c_current_addr_sk = ca_address_sk
    and substring(ca_zip, 1, 5) <> substring(s_zip, 1, 5) and ss_store_sk = s_store_sk
group by i_brand, i_brand_id, i_manufact_id, i_manufact
order by ext_price desc, i_brand, i_brand_id, i_manufact_id, i_manufact
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

-- 52
select dt.d_year, item.i_brand_id as brand_id, item.i_brand as brand, sum(ss_ext_sales_price) as ext_price
from date_dim dt, store_sales, item
where dt.d_date_sk = store_sales.ss_sold_date_sk and store_sales.ss_item_sk = item.i_item_sk
    and item.i_manager_id = 1 and dt.d_moy = 11 and dt.d_year = 2000
group by dt.d_year, item.i_brand, item.i_brand_id
order by dt.d_year, ext_price desc, brand_id
limit 100;

-- 55
select i_brand_id as brand_id, i_brand as brand, sum(ss_ext_sales_price) as ext_price
from date_dim, store_sales, item
where d_date_sk = ss_sold_date_sk and ss_item_sk = i_item_sk and i_manager_id = 28 and d_moy = 11 and d_year = 1999
group by i_brand, i_brand_id
order by ext_price desc, brand_id
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

-- 73
select c_last_name, c_first_name, c_salutation, c_preferred_cust_flag, ss_ticket_number, cnt
from (
    select ss_ticket_number, ss_customer_sk, count(*) as cnt
    from store_sales, date_dim, store, household_demographics
    where ss_sold_date_sk = d_date_sk and ss_store_sk = s_store_sk and ss_hdemo_sk = hd_demo_sk
        and d_dom between 1 and 2 and (hd_buy_potential = '>10000' or hd_buy_potential = 'Unknown')
        and hd_vehicle_count > 0
        and case when hd_vehicle_count > 0 then hd_dep_count / hd_vehicle_count else null end > 1
        and d_year in (1999, 2000, 2001)
        and s_county in ('Williamson County', 'Franklin Parish', 'Bronx County', 'Orange County')
    group by ss_ticket_number, ss_customer_sk) dj, customer
where ss_customer_sk = c_customer_sk and cnt between 1 and 5
order by cnt desc, c_last_name, c_first_name, ss_ticket_number;

-- 96
select count(*) as cnt
from store_sales, household_demographics, time_dim, store
where ss_sold_time_sk = time_dim.t_time_sk and ss_hdemo_sk = household_demographics.hd_demo_sk
    and ss_store_sk = s_store_sk and time_dim.t_hour = 20 and time_dim.t_minute >= 30
    and household_demographics.hd_dep_count = 7 and store.s_store_name = 'ese'
order by cnt
limit 100;

-- 98
select i_item_id, i_item_desc, i_category, i_class, i_current_price, sum(ss_ext_sales_price) as itemrevenue,
    sum(ss_ext_sales_price) * 100 / sum(sum(ss_ext_sales_price)) over (partition by i_class) as revenueratio
from store_sales, item, date_dim
where ss_item_sk = i_item_sk and i_category in ('Sports', 'Books', 'Home') and ss_sold_date_sk = d_date_sk
    and d_date between date '1999-02-22' and date '1999-02-22' + interval '30' day
group by i_item_id, i_item_desc, i_category, i_class, i_current_price
order by i_category, i_class, i_item_id, i_item_desc, revenueratio;
